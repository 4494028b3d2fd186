"""What tests of a tiered cache look with: a truth that counts who asks it, and a clock of their own."""

import asyncio
from collections.abc import Awaitable, Callable

from shared.cache.entries import Loaded
from shared.cache.tiered import TieredCache
from shared.testing.bus_probe import eventually


class Away(Exception):
    """The truth cannot be asked."""


class Clock:
    """A test moves `now`, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        # No two looks at a real clock see the same time.
        self.now += 1e-6
        return self.now


class Truth:
    """What a cache stands in front of: values with versions, counted, slow where a test holds it back."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[bytes, int]] = {"a": (b"one", 1), "b": (b"two", 1)}
        self.asked: list[str] = []
        self.fails: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    def of(self, key: str) -> Callable[[], Awaitable[Loaded]]:
        async def load() -> Loaded:
            self.asked.append(key)
            # Read first, then slow: what comes back may have changed meanwhile.
            value, version = self.values.get(key, (None, 0))
            fails = self.fails
            await self.go.wait()
            if fails is not None:
                raise fails
            return Loaded(value, version)

        return load

    async def until_asked(self, times: int) -> None:
        await eventually(lambda: len(self.asked) >= times)


async def value(cache: TieredCache, truth: Truth, key: str, **options: object) -> bytes | None:
    """Return what a cache answers."""
    return (await cache.get(key, truth.of(key), **options)).value  # type: ignore[arg-type]
