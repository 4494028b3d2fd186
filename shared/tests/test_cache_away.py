"""A tiered cache whose truth or shared tier is away: stale answers, bounded and only of what has not changed; copies never older."""

import asyncio

import pytest

from shared.cache.entries import FLOOR_S, CacheConfig, Found
from shared.cache.memory import MemoryCache
from shared.cache.tiered import LEFT_ALONE_S, TieredCache
from shared.testing.cache_probe import Away, Clock, Truth, value


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def truth() -> Truth:
    return Truth()


@pytest.fixture
def local(clock: Clock) -> TieredCache:
    """A cache without a shared tier that answers with stale entries."""
    return TieredCache("test", CacheConfig(stale_s=100, stale_after_s=0.05), clock=clock, away=(Away,))


# Stale answers.


async def test_stale_stands_in_while_the_truth_is_away_and_no_longer(
    local: TieredCache, truth: Truth, clock: Clock
) -> None:
    await value(local, truth, "a")
    truth.fails = Away()
    clock.now += 50
    found = await local.get("a", truth.of("a"))
    assert (found.value, found.is_stale) == (b"one", True)
    assert found.age_s == pytest.approx(50, abs=0.1)
    with pytest.raises(Away):
        await local.get("b", truth.of("b"))
    with pytest.raises(Away):
        await local.get("a", truth.of("a"), bypass=True)
    clock.now += 81
    with pytest.raises(Away):
        await local.get("a", truth.of("a"))
    assert local.statistics.stale == 1


async def test_one_caller_a_second_tries_the_truth(local: TieredCache, truth: Truth, clock: Clock) -> None:
    await value(local, truth, "a")
    truth.fails = Away()
    clock.now += 50
    for _ in range(10):
        assert (await local.get("a", truth.of("a"))).is_stale
    assert truth.asked == ["a", "a"]
    clock.now += LEFT_ALONE_S
    truth.fails = None
    truth.values["a"] = (b"two", 2)
    assert await local.get("a", truth.of("a")) == Found(b"two", 2, pytest.approx(0, abs=0.1))


async def test_a_silent_truth_is_not_waited_for_by_those_who_have_something(
    local: TieredCache, truth: Truth, clock: Clock
) -> None:
    await value(local, truth, "a")
    truth.go.clear()
    clock.now += 50
    found = await local.get("a", truth.of("a"))
    assert (found.value, found.is_stale) == (b"one", True)
    truth.go.set()


async def test_what_changed_is_never_answered_stale(local: TieredCache, truth: Truth, clock: Clock) -> None:
    await value(local, truth, "a")
    await local.changed("a", 2)
    truth.fails = Away()
    with pytest.raises(Away):
        await local.get("a", truth.of("a"))
    clock.now += FLOOR_S
    with pytest.raises(Away):
        await local.get("a", truth.of("a"))


async def test_an_exception_that_does_not_mean_away_is_told(local: TieredCache, truth: Truth, clock: Clock) -> None:
    await value(local, truth, "a")
    truth.fails = KeyError("a bug")
    clock.now += 50
    with pytest.raises(KeyError):
        await local.get("a", truth.of("a"))


# The shared tier.


@pytest.fixture
def pair(clock: Clock) -> tuple[TieredCache, TieredCache, MemoryCache]:
    """Two replicas on one shared tier that do not hear of each other."""
    shared = MemoryCache()
    return TieredCache("test", remote=shared, clock=clock), TieredCache("test", remote=shared, clock=clock), shared


Pair = tuple[TieredCache, TieredCache, MemoryCache]


async def test_another_replica_finds_it_in_the_shared_tier(pair: Pair, truth: Truth) -> None:
    one, two, shared = pair
    assert await value(one, truth, "a") == b"one"
    assert await value(one, truth, "none") is None
    assert await value(two, truth, "a") == b"one"
    assert await value(two, truth, "none") is None
    assert truth.asked == ["a", "none"]
    assert two.statistics.remote_hits == 2
    assert await shared.ttl_s(f"{one.name}:cache:a") <= 30
    assert await shared.ttl_s(f"{one.name}:cache:none") <= 5


async def test_the_shared_tier_takes_nothing_older(pair: Pair, truth: Truth) -> None:
    one, two, _ = pair
    truth.go.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(value(one, truth, "a"))
        await truth.until_asked(1)
        truth.values["a"] = (b"new", 2)
        await two.changed("a", 2)
        truth.go.set()
    assert await value(two, truth, "a") == b"new"


async def test_a_copy_older_than_what_is_known_is_not_taken(pair: Pair, truth: Truth) -> None:
    one, two, shared = pair
    await value(one, truth, "a")
    shared.available = False
    truth.values["a"] = (b"new", 2)
    await two.changed("a", 2)
    shared.available = True
    assert await value(two, truth, "a") == b"new"
    assert two.statistics.errors == 1


async def test_tags_hold_across_the_shared_tier(pair: Pair, truth: Truth) -> None:
    one, two, _ = pair
    await value(one, truth, "x:a", tags=["t"])
    await two.invalidate(tags=["t"])
    await value(two, truth, "x:a", tags=["t"])
    await one.invalidate(pattern="x:*")
    await value(two, truth, "x:a", tags=["t"])
    assert truth.asked == ["x:a", "x:a"]
    two.flush()
    await value(two, truth, "x:a", tags=["t"])
    assert truth.asked == ["x:a"] * 3


async def test_a_shared_tier_that_is_away_is_only_counted(pair: Pair, truth: Truth) -> None:
    one, _, shared = pair
    shared.available = False
    assert await value(one, truth, "a", tags=["t"]) == b"one"
    await one.changed("a", 2)
    await one.changed("b")
    await one.invalidate(tags=["t"])
    assert await value(one, truth, "a") == b"one"
    assert one.statistics.errors == 5


async def test_another_programs_bytes_are_not_taken(pair: Pair, truth: Truth) -> None:
    one, _, shared = pair
    for garbage in (b"", b"v1:", b"v1:?x", b"v1:+no newline", b"+\nx"):
        await shared.set(f"{one.name}:cache:a", garbage, ttl_s=60)
        one.flush()
        assert await value(one, truth, "a") == b"one"
    assert len(truth.asked) == 5
