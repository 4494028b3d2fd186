"""A bounded store in memory: the least recently used goes first, what has expired goes by itself."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

BYTES_MAX = 64 * 1024 * 1024
ENTRIES_MAX = 1_000_000
ENTRY_OVERHEAD_BYTES = 400
"""What an entry costs beside key and value: dictionary, objects and its place in the queue of expiries."""

SWEEP_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """`fresh_until`, `stored_at`, `version` and `marks` are those of a tiered cache; times in seconds of the store's clock."""

    value: bytes
    expires_at: float
    fresh_until: float = 0.0
    stored_at: float = 0.0
    version: int = 0
    is_missing: bool = False
    marks: tuple[tuple[str, int], ...] = ()


class MemoryStore:
    """`clock` gives seconds, rising. Every operation first removes what has expired, so nothing expired is ever seen or counted.

    `evicted` counts what had to go for want of room, `expired` what was removed at its time.
    """

    def __init__(
        self,
        *,
        bytes_max: int = BYTES_MAX,
        entries_max: int = ENTRIES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bytes_used = 0
        self.evicted = 0
        self.expired = 0
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        # Earliest expiry first; a pair that no longer fits its entry is stale and skipped.
        self._expiries: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> bytes | None:
        entry = self.entry(key)
        return None if entry is None else entry.value

    def entry(self, key: str) -> Entry | None:
        """Return what is kept under a key, which is now the most recently used."""
        if self._expiries and self._expiries[0][0] <= self._clock():
            self.remove_expired()
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        self.keep(key, Entry(value, self._clock() + ttl_s))

    def keep(self, key: str, entry: Entry) -> None:
        """Store an entry as it is."""
        self.remove_expired()
        self._put(key, entry)

    def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        self.remove_expired()
        if key in self._entries:
            return False
        self._put(key, Entry(value, self._clock() + ttl_s))
        return True

    def count(self, key: str, *, ttl_s: float) -> int:
        self.remove_expired()
        entry = self._entries.get(key)
        if entry is None:
            self._put(key, Entry(b"1", self._clock() + ttl_s))
            return 1
        try:
            number = int(entry.value) + 1
        except ValueError:
            raise ValueError("the key holds a value that is no counter") from None
        self._put(key, Entry(b"%d" % number, entry.expires_at))
        return number

    def ttl_s(self, key: str) -> float:
        self.remove_expired()
        entry = self._entries.get(key)
        return max(0.0, entry.expires_at - self._clock()) if entry else 0.0

    def delete(self, key: str) -> bool:
        self.remove_expired()
        return self._remove(key)

    def clear(self) -> None:
        self._entries.clear()
        self._expiries.clear()
        self.bytes_used = 0

    def remove_expired(self) -> None:
        now = self._clock()
        while self._expiries and self._expiries[0][0] <= now:
            expires_at, key = heappop(self._expiries)
            entry = self._entries.get(key)
            if entry is not None and entry.expires_at == expires_at:
                self._remove(key)
                self.expired += 1

    def _put(self, key: str, entry: Entry) -> None:
        known = self._entries.get(key)
        self._remove(key)
        self._entries[key] = entry
        self.bytes_used += _size_bytes(key, entry)
        if known is None or known.expires_at != entry.expires_at:
            heappush(self._expiries, (entry.expires_at, key))
        if len(self._expiries) > 2 * len(self._entries) + 64:
            self._expiries = [(entry.expires_at, key) for key, entry in self._entries.items()]
            heapify(self._expiries)
        while self.bytes_used > self._bytes_max or len(self._entries) > self._entries_max:
            self._remove(next(iter(self._entries)))
            self.evicted += 1

    def _remove(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self.bytes_used -= _size_bytes(key, entry)
        return True


def _size_bytes(key: str, entry: Entry) -> int:
    return len(key.encode()) + len(entry.value) + ENTRY_OVERHEAD_BYTES


class Sweeper:
    """While a store holds anything, removes what has expired once a second, so that an idle cache gives its memory back."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_planned(self) -> bool:
        return self._timer is not None

    def plan(self) -> None:
        """Say that something was stored."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._store.remove_expired()
        if len(self._store):
            self.plan()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
