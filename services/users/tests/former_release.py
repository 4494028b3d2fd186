"""The statements of the release before the tables of 0002: a replica of it must go on working beside the new ones during a roll-out.

Kept as they were sent; when a release is made, the statements of the one before it take their place.
"""

import asyncpg

MIGRATION = "0001_users"
"""The last one that it knows."""

ADD = """
WITH added AS (
    INSERT INTO users (id, username, username_folded, email, full_name, role, version, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
), secret AS (
    INSERT INTO credentials (user_id, password_hash) VALUES ($1, $10)
)
INSERT INTO outbox (id, subject, payload) VALUES ($11, $12, $13)
"""
COLUMNS = "u.id, u.username, u.email, u.full_name, u.role, u.version, u.created_at, u.updated_at"
GET = f"SELECT {COLUMNS} FROM users u WHERE u.id = $1"
FIND_BY_NAME = f"SELECT {COLUMNS}, c.password_hash FROM users u JOIN credentials c ON c.user_id = u.id WHERE u.username_folded = $1"
FIND_BY_EMAIL = (
    f"SELECT {COLUMNS}, c.password_hash FROM users u JOIN credentials c ON c.user_id = u.id WHERE u.email = $1"
)
PAGE = f"SELECT {COLUMNS} FROM users u WHERE $1::uuid IS NULL OR u.id > $1 ORDER BY u.id LIMIT $2"
REPLACE = """
WITH changed AS (
    UPDATE users SET username = $2, username_folded = $3, email = $4, full_name = $5, role = $6, version = $7, updated_at = $8
    WHERE id = $1 AND version = $9
    RETURNING id
), secret AS (
    UPDATE credentials SET password_hash = $10 FROM changed WHERE user_id = changed.id AND $10::text IS NOT NULL
), ended AS (
    DELETE FROM sessions USING changed
    WHERE user_id = changed.id AND $10::text IS NOT NULL AND sessions.id IS DISTINCT FROM $11::uuid
)
INSERT INTO outbox (id, subject, payload) SELECT $12, $13, $14 FROM changed RETURNING id
"""
REMOVE = """
WITH removed AS (DELETE FROM users WHERE id = $1 AND version = $2 RETURNING id)
INSERT INTO outbox (id, subject, payload) SELECT $3, $4, $5 FROM removed RETURNING id
"""
REHASH = "UPDATE credentials SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2"
HAS_ADMIN = "SELECT 1 FROM users WHERE role = 'admin' LIMIT 1"
OPEN_SESSION = """
WITH dropped AS (
    DELETE FROM sessions WHERE user_id = $2 AND (
        expires_at <= $5
        OR id IN (SELECT id FROM sessions WHERE user_id = $2 ORDER BY id DESC OFFSET $7)
    )
)
INSERT INTO sessions (id, user_id, family_hash, refresh_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
"""
USER_OF_SESSION = (
    f"SELECT {COLUMNS} FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.id = $1 AND s.expires_at > $2"
)
ROTATE = f"""
UPDATE sessions s SET refresh_hash = $3 FROM users u
WHERE s.family_hash = $1 AND s.refresh_hash = $2 AND s.expires_at > $4 AND u.id = s.user_id
RETURNING s.id AS session_id, {COLUMNS}
"""
REUSED = "DELETE FROM sessions WHERE family_hash = $1 AND expires_at > $2 RETURNING id"
END_SESSION = "DELETE FROM sessions WHERE id = $1"
KEYS = "SELECT kid, public_key, sealed_key, created_at FROM signing_keys ORDER BY created_at DESC, kid DESC LIMIT 100"
ADD_KEY = (
    "INSERT INTO signing_keys (kid, public_key, sealed_key, created_at) "
    "SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT 1 FROM signing_keys)"
)
WAITING = "SELECT id, subject, payload FROM outbox ORDER BY number LIMIT $1"
DONE = (
    "DELETE FROM outbox WHERE number IN (SELECT number FROM outbox ORDER BY number LIMIT $2) AND id = ANY($1::uuid[])"
)
BACKLOG = "SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT $1) waiting"


async def life_of_a_user(connection: asyncpg.Connection, new_id, now, later) -> list[str]:
    """Do all that the former release does for one user, check each step, and return the subjects it left in the outbox."""
    user_id, session_id = new_id(), new_id()
    name = f"n{user_id[-12:]}"
    event = lambda verb: (new_id(), f"evt.users.user.{verb}.v1", b'{"by":"the former release"}')  # noqa: E731
    record = (user_id, name, name, f"{name}@example.com", None, "user")
    await connection.execute(ADD, *record, 1, now, now, "hash", *event("created"))
    assert (await connection.fetchrow(GET, user_id))["version"] == 1
    assert (await connection.fetchrow(FIND_BY_NAME, name))["password_hash"] == "hash"
    assert (await connection.fetchrow(FIND_BY_EMAIL, f"{name}@example.com"))["username"] == name
    assert len(await connection.fetch(PAGE, None, 1)) == 1

    await connection.execute(OPEN_SESSION, session_id, user_id, session_id.encode(), b"one", now, later, 99)
    assert (await connection.fetchrow(USER_OF_SESSION, session_id, now))["role"] == "user"
    assert (await connection.fetchrow(ROTATE, session_id.encode(), b"one", b"two", now))["username"] == name
    assert await connection.fetchrow(ROTATE, session_id.encode(), b"one", b"three", now) is None

    changed = (user_id, name, name, f"{name}@example.com", "A Name", "user", 2, now, 1)
    assert await connection.fetchrow(REPLACE, *changed, None, None, *event("updated")) is not None
    assert await connection.fetchrow(REPLACE, *changed, None, None, *event("updated")) is None
    renewed = (*changed[:6], 3, now, 2)
    assert await connection.fetchrow(REPLACE, *renewed, "new hash", session_id, *event("updated")) is not None
    await connection.execute(REHASH, user_id, "new hash", "newer hash")
    assert (await connection.fetchrow(FIND_BY_NAME, name))["password_hash"] == "newer hash"
    assert await connection.fetchrow(USER_OF_SESSION, session_id, now) is not None

    assert await connection.fetchrow(REUSED, session_id.encode(), now) is not None
    await connection.execute(END_SESSION, session_id)
    assert await connection.fetchrow(REMOVE, user_id, 2, *event("deleted")) is None
    assert await connection.fetchrow(REMOVE, user_id, 3, *event("deleted")) is not None
    assert await connection.fetchrow(GET, user_id) is None
    return [f"evt.users.user.{verb}.v1" for verb in ("created", "updated", "updated", "deleted")]
