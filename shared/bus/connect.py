"""Connecting to the bus: the URL's scheme picks the adapter, and only that one's driver is imported."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from shared.bus.base import Bus


async def connect(url: str, *, name: str) -> Bus:
    """Return a connected bus; `name` tells the server who we are (the replica's name).

    `memory://` is a new bus inside the process, `memory://word` the process-wide one of that name, `nats://user:password@host:port`
    (several, separated by commas, for a cluster) a NATS server; `tls://` the same over TLS. Raises ValueError for another scheme and
    BusUnavailable when no server takes us within 10 s.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme == "memory":
        from shared.bus.memory import MemoryBus, broker_named

        word = urlsplit(url).netloc
        return MemoryBus(broker_named(word) if word else None)
    if scheme in ("nats", "tls"):
        from shared.bus.nats import NatsBus

        return await NatsBus.connect(url, name=name)
    raise ValueError("the bus URL has an unknown scheme: use memory://, nats:// or tls://")


@asynccontextmanager
async def connected(url: str, *, name: str) -> AsyncIterator[Bus]:
    """Connect as `connect` does, and close the bus in the end."""
    bus = await connect(url, name=name)
    try:
        yield bus
    finally:
        await bus.close()
