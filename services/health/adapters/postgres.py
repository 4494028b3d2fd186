"""The probe of PostgreSQL: `SELECT 1` on a connection that is kept, and made anew after any trouble."""

import asyncpg

from services.health.adapters.kinds import kind_of
from services.health.model import ProbeFailed, Role, Target


class PostgresProbe:
    """Asked by one caller at a time."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._connection: asyncpg.Connection | None = None
        self.target = Target("postgres", Role.REQUIRED)

    async def check(self) -> None:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(
                    self._url, timeout=self._timeout_s, server_settings={"application_name": "roundhouse-health"}
                )
            found = await self._connection.fetchval("SELECT 1", timeout=self._timeout_s)
        except BaseException as error:
            # Also when we are cancelled: a connection in mid-answer is good for nothing.
            self._drop()
            if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
                raise ProbeFailed("auth") from error
            if isinstance(error, asyncpg.InternalClientError):
                raise ProbeFailed(
                    "closed"
                ) from error  # what the driver says when the server ended the connection meanwhile
            if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError | OSError):
                raise ProbeFailed("refused" if _is_starting(error) else kind_of(error)) from error
            raise
        if found != 1:
            raise ProbeFailed("garbage")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Disconnect without waiting for the server, which may be the very thing that hangs."""
        self._drop()


def _is_starting(error: BaseException) -> bool:
    """Tell whether the server answers, but takes nobody in: starting, stopping or full."""
    return isinstance(error, asyncpg.CannotConnectNowError | asyncpg.TooManyConnectionsError)
