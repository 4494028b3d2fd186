"""The outbox in PostgreSQL, read over a connection of its own that holds the lock of the one active relay."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

from services.users.adapters.postgres.locks import RELAY_LOCK
from services.users.adapters.postgres.pool import connect, translated
from services.users.model.records import Event

BACKLOG_COUNTED_MAX = 1_000_000
CLOSE_TIMEOUT_S = 2.0
"""Shorter than a service waits for its tasks to stop."""


def outbox_rows(ids: str, subjects: str, payloads: str, *, when: str) -> str:
    """Return the INSERT that stores the events of `outbox_values` in these parameters, to stand in a WITH of a write.

    `when` names a part of the same WITH: the events are stored when that returns a row, else never.
    """
    return (
        "INSERT INTO outbox (id, subject, payload) SELECT id, subject, payload "  # noqa: S608 - constants only
        f"FROM unnest({ids}::uuid[], {subjects}::text[], {payloads}::bytea[]) WITH ORDINALITY AS event(id, subject, payload, n) "
        f"WHERE EXISTS (SELECT 1 FROM {when}) ORDER BY n"
    )


def outbox_values(events: Sequence[Event | None]) -> tuple[list[str], list[str], list[bytes]]:
    """Return events as the parameters of `outbox_rows`; what is None is left out."""
    found = [event for event in events if event is not None]
    return [event.id for event in found], [event.subject for event in found], [event.payload for event in found]


class PostgresLine:
    """One relay's connection.

    Everything goes over it, so a relay that has lost its lock with its connection can neither read nor remove.
    """

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._leads = False
        # Of the events handed out last: rows are removed by their number, so no index on id is kept up by every write.
        self._numbers: dict[str, int] = {}

    async def lead(self) -> bool:
        if not self._leads:
            with translated():
                self._leads = bool(await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", RELAY_LOCK))
        return self._leads

    async def waiting(self, limit: int) -> list[Event]:
        with translated():
            rows = await self._connection.fetch(
                "SELECT number, id, subject, payload FROM outbox ORDER BY number LIMIT $1", limit
            )
        self._numbers = {str(row["id"]): row["number"] for row in rows}
        return [Event(str(row["id"]), row["subject"], row["payload"]) for row in rows]

    async def done(self, event_ids: Sequence[str]) -> None:
        numbers = [self._numbers[event_id] for event_id in event_ids if event_id in self._numbers]
        with translated():
            await self._connection.execute("DELETE FROM outbox WHERE number = ANY($1::bigint[])", numbers)

    async def backlog(self) -> int:
        with translated():
            found = await self._connection.fetchval(
                "SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT $1) waiting", BACKLOG_COUNTED_MAX
            )
        return int(found)


class PostgresOutbox:
    """The outbox of a database; an Outbox."""

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self._name = name

    @asynccontextmanager
    async def line(self) -> AsyncIterator[PostgresLine]:
        connection = await connect(self._url, name=f"{self._name}-relay")
        try:
            yield PostgresLine(connection)
        finally:
            with translated():
                await connection.close(timeout=CLOSE_TIMEOUT_S)
