"""Tickets: how a page opens a socket or an event stream, where it can set no header; each is good once."""

from collections.abc import Sequence
from urllib.parse import parse_qsl

import structlog

from services.gateway.domain.admission import VERIFY_S_MAX
from shared import context
from shared.cache.base import Cache, CacheUnavailable
from shared.cache.memory import MemoryCache
from shared.deadline import limit
from shared.errors import Unauthorized
from shared.tokens import TICKET_LASTS_S, TICKET_LEEWAY_S, Identity, TokenVerifier

KEPT_S = TICKET_LASTS_S + 2 * TICKET_LEEWAY_S
"""A used ticket is remembered for longer than any clock takes it."""


class Tickets:
    """Spends tickets, once in the whole fleet; while the shared cache is away once in each process, which is logged."""

    def __init__(self, verifier: TokenVerifier, cache: Cache) -> None:
        self._verifier = verifier
        self._cache = cache
        self._own = MemoryCache()
        self._is_away = False
        self._log = structlog.get_logger()

    async def spend(self, ticket: str) -> Identity:
        """Return who a ticket stands for. Raises Unauthorized; Unavailable and DeadlineExceeded where no key to check it with came."""
        async with limit(context.deadline(), VERIFY_S_MAX, "checking the ticket"):
            identity = await self._verifier.verify_ticket(ticket)
        key = f"gateway:ticket:{identity.token_id}"
        if not await self._own.add(key, b"1", ttl_s=KEPT_S) or not await self._is_first(key):
            raise Unauthorized("the ticket has been used", code="ticket_used")
        return identity

    async def _is_first(self, key: str) -> bool:
        try:
            is_first = await self._cache.add(key, b"1", ttl_s=KEPT_S)
        except CacheUnavailable:
            if not self._is_away:
                self._log.warning("tickets_are_once_in_each_process", reason="the cache is away")
            self._is_away = True
            return True
        self._is_away = False
        return is_first

    async def close(self) -> None:
        await self._cache.close()


def ticket_in(query: str) -> str:
    """Return the ticket of a query, empty where there is none or an access token goes before it.

    Raises Unauthorized for several: the service behind would take another one than was looked at here.
    """
    pairs: Sequence[tuple[str, str]] = parse_qsl(query, keep_blank_values=True)
    if any(name == "token" and value for name, value in pairs):
        return ""
    found = [value for name, value in pairs if name == "ticket"]
    if len(found) > 1:
        raise Unauthorized("a request has one ticket", code="ticket_invalid")
    return found[0] if found else ""
