"""The store in PostgreSQL 16 to 18: asyncpg and hand-written SQL, one statement a write wherever it can be one."""
