"""The cache that a service reads through: a bounded local tier, then Redis where one is given, then whoever knows the truth."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from shared.bus.base import Bus
from shared.cache import checks, versions
from shared.cache.base import Cache
from shared.cache.entries import FLOOR_S, JITTER, CacheConfig, CacheStatistics, Found, Load, Loaded, patterns_of
from shared.cache.flights import Flights
from shared.cache.line import Change, Line
from shared.cache.memory_store import Entry, MemoryStore, Sweeper
from shared.cache.remote_tier import RemoteTier

UNVOUCHED_S = 1.0
"""An entry is taken so long after its loading began while nobody vouches that it has not changed."""

FLOORS_MAX = 20_000
"""So many changes are remembered; where one is forgotten early, no load that is under way is kept."""

GENERATIONS_MAX = 10_000
"""So many tags are told apart; one more empties the local tier."""

LEFT_ALONE_S = 1.0
"""So long, after it could not be asked, the truth is not asked again by those who have something stale."""

Marks = tuple[tuple[str, int], ...]


class TieredCache:
    """`name` is the service's: keys in Redis are `<name>:cache:...`, changes go over the subject `ctl.<name>.cache`.

    With `connect`, the bus between replicas, `run` must run as a background task. A change on another replica is heard within
    milliseconds. When a message may have been lost the local tier is emptied, and while the bus does not answer an entry is taken only
    for a second after its loading: a local entry is never wrong for longer than a second. One thing remains: a writer that cannot
    reach the bus itself. It tells what it changed as soon as it can, and until then others may answer from entries up to `ttl_s` old.

    `away` are the exceptions of a load that mean that the truth cannot be asked.
    """

    def __init__(
        self,
        name: str,
        config: CacheConfig | None = None,
        *,
        remote: Cache | None = None,
        connect: Callable[[], Awaitable[Bus]] | None = None,
        away: tuple[type[Exception], ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.config = config or CacheConfig()
        self._store = MemoryStore(bytes_max=self.config.bytes_max, entries_max=self.config.entries_max, clock=clock)
        # What is known to have changed, apart from what is kept: a flood of changes must not push the records out.
        self._floors = MemoryStore(entries_max=FLOORS_MAX, clock=clock)
        self._sweepers = (Sweeper(self._store), Sweeper(self._floors))
        self._flights: Flights[Entry] = Flights(name, is_detached=True)
        self._remote = RemoteTier(name, remote) if remote is not None else None
        self._away: tuple[type[Exception], ...] = (TimeoutError, *away)
        self._clock = clock
        self._counts = CacheStatistics()
        self._generations: dict[str, int] = {}
        self._flushed_at = float("-inf")
        self._left_alone_until = float("-inf")
        self._line: Line | None = None
        if connect is not None:
            subject = f"ctl.{name}.cache"
            self._line = Line(subject, connect, heard=self._apply_heard, missed=self.flush, clock=clock)

    async def run(self) -> None:
        """Hold the line to the other replicas, for ever; returns at once where there is none."""
        if self._line is not None:
            await self._line.run()

    def close(self) -> None:
        """Give the memory back."""
        for sweeper in self._sweepers:
            sweeper.stop()
        self._store.clear()
        self._floors.clear()

    @property
    def statistics(self) -> CacheStatistics:
        """What was counted until now."""
        counts, store = self._counts, self._store
        counts.joined = self._flights.joined
        counts.evicted, counts.expired = store.evicted, store.expired
        counts.entries, counts.bytes_used = len(store), store.bytes_used
        counts.errors = self._remote.errors if self._remote is not None else 0
        return counts

    # Reading.

    def peek(self, key: str) -> Entry | None:
        """Return a fresh entry of the local tier at once, None where a `get` would have to ask somebody."""
        entry = self._store.entry(key)
        if entry is None:
            return None
        now = self._clock()
        if entry.fresh_until <= now or (entry.marks and not self._is_current(entry.marks)):
            return None
        if self._line is not None and now - entry.stored_at > UNVOUCHED_S and not self._line.vouches(now):
            return None
        self._counts.hits += 1
        return entry

    async def get(self, key: str, load: Load, *, tags: Sequence[str] = (), bypass: bool = False) -> Found:
        """Return what is cached, or load it, once for all who ask meanwhile. `bypass` loads in any case.

        `load` raises where the truth cannot be asked; then something stale answers where `stale_s` allows it, but not to a `bypass`.
        """
        checks.check_key(key)
        names = [*tags, *patterns_of(key)]
        if bypass:
            self._counts.misses += 1
            return self._found(await self._load(key, load, self._marks(names)))
        entry = self.peek(key)
        if entry is not None:
            return self._found(entry)
        self._counts.misses += 1
        if self._stale(key) is None:
            return self._found(await self._fly(key, load, names))
        return await self._get_patiently(key, load, names)

    async def _get_patiently(self, key: str, load: Load, names: Sequence[str]) -> Found:
        """Load where that is soon done, else answer with what is there: one caller a second tries."""
        now = self._clock()
        if now >= self._left_alone_until:
            try:
                async with asyncio.timeout(self.config.stale_after_s):
                    return self._found(await self._fly(key, load, names))
            except self._away:
                self._left_alone_until = self._clock() + LEFT_ALONE_S
        # What has changed meanwhile is gone, and then only the truth will do.
        old = self._stale(key)
        if old is None:
            return self._found(await self._fly(key, load, names))
        self._counts.stale += 1
        return self._found(old, is_stale=True)

    def _found(self, entry: Entry, *, is_stale: bool = False) -> Found:
        value = None if entry.is_missing else entry.value
        return Found(value, entry.version, max(0.0, self._clock() - entry.stored_at), is_stale)

    def _stale(self, key: str) -> Entry | None:
        """Return what may stand in for the truth: not known to have changed, and not too old."""
        entry = self._store.entry(key) if self.config.stale_s else None
        if entry is None or not self._is_current(entry.marks):
            return None
        # Where the bus does not answer either, nobody could tell us of a change.
        return entry if self._line is None or self._line.vouches(self._clock()) else None

    async def _fly(self, key: str, load: Load, names: Sequence[str]) -> Entry:
        return await self._flights.run(key, lambda: self._find(key, load, names))

    async def _find(self, key: str, load: Load, names: Sequence[str]) -> Entry:
        marks = self._marks(names)
        if self._remote is None:
            return await self._load(key, load, marks)
        began_at = self._clock()
        loaded, generations = await self._remote.find(key, names)
        known = self._known(key)
        if loaded is not None and (known is None or not _is_older_copy(loaded, known)):
            self._counts.remote_hits += 1
            return self._keep(key, loaded, marks, began_at)
        entry = await self._load(key, load, marks)
        if generations is not None:
            ttl_s = self.config.missing_ttl_s if entry.is_missing else self.config.ttl_s
            loaded = Loaded(None if entry.is_missing else entry.value, entry.version)
            await self._remote.write(key, loaded, generations, ttl_s=ttl_s)
        return entry

    async def _load(self, key: str, load: Load, marks: Marks) -> Entry:
        began_at = self._clock()
        loaded = await load()
        self._left_alone_until = float("-inf")
        return self._keep(key, loaded, marks, began_at)

    def _keep(self, key: str, loaded: Loaded, marks: Marks, began_at: float) -> Entry:
        """Keep what was loaded, unless something newer is known here; return it either way."""
        known = self._known(key)
        entry = self._entry(loaded, marks, began_at, known)
        if began_at <= self._flushed_at or (known is not None and _is_older(loaded, began_at, known)):
            self._counts.refused += 1
        else:
            self._store.keep(key, entry)
            self._sweepers[0].plan()
        return entry

    def _known(self, key: str) -> Entry | None:
        """Return what is kept under a key, else what is known to have changed there."""
        return self._store.entry(key) or self._floors.entry(key)

    def _entry(self, loaded: Loaded, marks: Marks, began_at: float, known: Entry | None) -> Entry:
        is_missing = loaded.value is None
        ttl_s = self.config.missing_ttl_s if is_missing else self.config.ttl_s
        fresh_until = self._clock() + ttl_s * random.uniform(1 - JITTER, 1)
        return Entry(
            value=loaded.value or b"",
            expires_at=fresh_until + (0.0 if is_missing else self.config.stale_s),
            fresh_until=fresh_until,
            stored_at=began_at,
            # What is gone has no version of its own, but what was there before it must not come back.
            version=max(loaded.version, known.version) if is_missing and known is not None else loaded.version,
            is_missing=is_missing,
            marks=marks,
        )

    # Changing.

    async def changed(
        self, key: str, version: int = 0, *, value: bytes | None = None, tags: Sequence[str] = (), is_told: bool = True
    ) -> None:
        """Say that what is under a key has changed, after it was stored: its version now, and its value where it is at hand.

        From here on nothing older is answered by this replica, and soon by none. Others need not be told of a key that is new.
        Raises nothing for a bus or Redis that is away.
        """
        self._apply_key(key, version)
        if value is not None:
            known = self._known(key)
            if known is not None and known.version <= version:
                marks = self._marks([*tags, *patterns_of(key)])
                self._store.keep(key, self._entry(Loaded(value, version), marks, self._clock(), None))
        if is_told:
            await self._tell({key: version})

    async def changed_all(self, versions_by_key: Mapping[str, int]) -> None:
        """Say so of many keys at once."""
        for key, version in versions_by_key.items():
            self._apply_key(key, version)
        await self._tell(versions_by_key)

    async def _tell(self, versions_by_key: Mapping[str, int]) -> None:
        if self._line is not None:
            await self._line.tell(Change(keys=dict(versions_by_key)))
        if self._remote is not None:
            for key, version in versions_by_key.items():
                await self._remote.forbid(key, version)

    async def invalidate(self, *, tags: Sequence[str] = (), pattern: str = "") -> None:
        """Let go of everything that was loaded with one of these tags, or under a key that the pattern `prefix:*` takes.

        Costs the same however much that is: each tag has a generation, which changes; nothing is searched for.
        """
        if pattern and not pattern.endswith(":*"):
            raise ValueError("a pattern has the form prefix:*")
        names = [*tags, *([pattern] if pattern else [])]
        self._apply_tags(names)
        if self._line is not None:
            await self._line.tell(Change(tags=set(names)))
        if self._remote is not None:
            for name in names:
                await self._remote.renew(name)

    def flush(self) -> None:
        """Empty this replica's local tier; what is being loaded is not kept."""
        self._counts.flushes += 1
        self._flushed_at = self._clock()
        self._store.clear()
        self._generations.clear()
        self._flights.drop_all()

    def _apply_heard(self, change: Change) -> None:
        self._counts.changes += 1
        if change.is_everything:
            self.flush()
            return
        for key, version in change.keys.items():
            self._apply_key(key, version)
        self._apply_tags(change.tags)

    def _apply_key(self, key: str, version: int) -> None:
        checks.check_key(key)
        versions.check_version(version)
        known = self._known(key)
        if known is not None and version and _is_current_at(version, known):
            return
        # Something is left behind that says which loads, begun before or read from a copy, come too late.
        now = self._clock()
        self._store.delete(key)
        evicted = self._floors.evicted
        self._floors.keep(key, Entry(b"", now + FLOOR_S, stored_at=now, version=version))
        self._sweepers[1].plan()
        if self._floors.evicted > evicted:
            self._flushed_at = now
        self._flights.drop(key)

    def _apply_tags(self, names: Iterable[str]) -> None:
        for name in names:
            self._generations[name] = self._generations.get(name, 0) + 1
            self._flights.drop_all()
        if len(self._generations) > GENERATIONS_MAX:
            self.flush()

    def _marks(self, names: Iterable[str]) -> Marks:
        return tuple((name, self._generations.get(name, 0)) for name in names)

    def _is_current(self, marks: Marks) -> bool:
        return all(self._generations.get(name, 0) == generation for name, generation in marks)


def _is_current_at(version: int, known: Entry) -> bool:
    """Tell whether what is known is no older than a version that is announced: of that version only a value is proof."""
    is_value = bool(known.fresh_until) and not known.is_missing
    return known.version > version or (known.version == version and is_value)


def _is_older(loaded: Loaded, began_at: float, known: Entry) -> bool:
    """Tell whether what was loaded, from `began_at` on, comes too late for what is known: then that stays."""
    if loaded.version:
        return loaded.version < known.version
    # Nothing to compare but the time: what was announced or loaded since may be newer.
    return began_at < known.stored_at if known.fresh_until else began_at <= known.stored_at


def _is_older_copy(loaded: Loaded, known: Entry) -> bool:
    """Tell whether a copy may be older than what is known here; how old it is nobody knows."""
    return loaded.version < known.version or not (loaded.version or known.fresh_until)
