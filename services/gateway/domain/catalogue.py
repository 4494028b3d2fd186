"""The platform's OpenAPI document, live: gathered from the services when it is asked for, and kept for a while."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.gateway.domain.document_policies import Document
from services.gateway.domain.documents import Own, Source, UnreadableDocument, check_document, merge
from services.gateway.model import GatewayConfig
from shared import context
from shared.deadline import limit
from shared.errors import Problem, Unavailable

FRESH_S = 5.0
"""For so long a document is answered as it is: services are asked by us, not as often as clients ask."""

FETCH_S_MAX = 3.0
"""For one service, all its replicas that are tried."""

WAIT_S_MAX = 15.0
"""A client waits at most this long; a round that asks SERVICES_MAX services that hang takes no longer."""

SERVICES_MAX = 32
AT_ONCE_MAX = 8
"""Services that are shown, and asked at one time; with the bound on a body that is the bound on what is kept."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A document as it is sent, its entity tag, and what it was made for."""

    body: bytes
    etag: str
    config: GatewayConfig
    made_at: float


class Catalogue:
    """Keeps what each service last said of itself, so that one that is down is still shown, marked `stale`.

    One round at a time asks the services, for all who wait for it, and by a task of its own: neither a client's haste nor its leaving
    cuts it short.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[Any]],
        config: Callable[[], GatewayConfig],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fetch` returns the document of a service named or raises a Problem; `config` returns the configuration in use."""
        self.own: Callable[[], Own]
        self._fetch = fetch
        self._config = config
        self._clock = clock
        self._seen: dict[str, Document] = {}
        self._shown: Shown | None = None
        self._wanted = asyncio.Event()
        self._round = asyncio.Event()

    async def current(self) -> Shown:
        """Return the document, at most FRESH_S old. Raises Unavailable, and DeadlineExceeded after WAIT_S_MAX."""
        if not self._is_fresh():
            # Taken before the wish: it is this round's, or the next one's where none is under way.
            done = self._round
            self._wanted.set()
            async with limit(context.deadline(), WAIT_S_MAX, "gathering the services' documents"):
                await done.wait()
        if self._shown is None:
            raise Unavailable("the document could not be made; the log of the gateway says why")
        return self._shown

    async def run(self) -> None:
        """Gather each time that is wished for; a service runs it as a background task."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                if not self._is_fresh():
                    self._shown = await self._gather()
            finally:
                done, self._round = self._round, asyncio.Event()
                done.set()

    def _is_fresh(self) -> bool:
        shown = self._shown
        return shown is not None and shown.config is self._config() and self._clock() - shown.made_at < FRESH_S

    async def _gather(self) -> Shown:
        config, own = self._config(), self.own()
        names = list(dict.fromkeys(route.service for route in config.routes))
        slots = asyncio.Semaphore(AT_ONCE_MAX)

        async def ask(name: str) -> Source:
            async with slots:
                return await self._ask(name)

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(name)) for name in names[:SERVICES_MAX]]
        sources = [task.result() for task in asked]
        reason = f"the documents of the first {SERVICES_MAX} services are shown"
        sources += [Source(name, None, "absent", reason) for name in names[SERVICES_MAX:]]
        self._seen = {source.name: source.document for source in sources if source.document is not None}
        body = await asyncio.to_thread(_render, config, own, sources)
        return Shown(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"', config, self._clock())

    async def _ask(self, name: str) -> Source:
        try:
            async with asyncio.timeout(FETCH_S_MAX):
                return Source(name, check_document(await self._fetch(name)))
        except TimeoutError:
            reason = f"it did not answer within {FETCH_S_MAX:g} s"
        except UnreadableDocument as fault:
            reason = str(fault)
        except Problem as problem:
            reason = problem.detail
        before = self._seen.get(name)
        return Source(name, before, "absent" if before is None else "stale", reason)


def _render(config: GatewayConfig, own: Own, sources: Sequence[Source]) -> bytes:
    return orjson.dumps(merge(config, own, sources))
