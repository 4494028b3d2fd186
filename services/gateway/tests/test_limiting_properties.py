"""What holds for every order of events: one process is the algorithm itself, many are within their bound, nothing is minted."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from types import SimpleNamespace
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from limits import RateLimitItemPerSecond
from limits.storage import memory
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from services.gateway.domain.gcra import SLACK, Demand, Rate, settle
from services.gateway.domain.metering import KEEP_S
from services.gateway.model import Limit
from services.gateway.tests.limiting_rig import Clock, Process, Switched, limit, passed

INTERVAL_S = 0.25
"""A power of two, like the steps of the clock: sums of such numbers are exact."""

quotas = st.sampled_from([4, 16, 40, 200])
steps_s = st.sampled_from([0.0, 0.0, 0.0, 0.125, 0.25, 0.5, 3.0, 20.0, KEEP_S])


def rate_of(quota: int) -> Rate:
    return Rate(quota, quota * INTERVAL_S)


def limit_of(quota: int, **fields: object) -> Limit:
    return limit(quota, quota * INTERVAL_S, **fields)


class Exact:
    """The algorithm on one number, with no lease and no store."""

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self.rate = rate
        self.clock = clock
        self.full_at = 0.0

    def take(self, tokens: int) -> bool:
        now = self.clock()
        demand = Demand(wanted=tokens, least=tokens)
        granted, full_in_s = settle(self.rate, self.full_at - now, demand)
        self.full_at = now + full_in_s
        return granted == tokens

    @property
    def free(self) -> float:
        return (self.clock() + self.rate.window_s - max(self.full_at, self.clock())) / self.rate.interval_s


@given(
    st.sampled_from([4, 16, 40, 200]), st.lists(st.tuples(steps_s, st.sampled_from([1, 1, 1, 1, 3]), st.integers(0, 9)))
)
def test_one_process_is_the_algorithm_itself(quota: int, events: list[tuple[float, int, int]]) -> None:
    async def run() -> None:
        store = Switched(Clock())
        process, exact = Process(store, limit_of(quota)), Exact(rate_of(quota), store.clock)
        for step_s, cost, extra in events:
            store.clock.now += step_s
            for _ in range(extra * extra):
                verdict = await process.ask(cost=cost)
                assert (not verdict.wait_s) == exact.take(cost)
                assert int(verdict.free + SLACK) == int(exact.free + SLACK)
            if extra == 1:
                process.limiter.sweep()
            elif extra == 2 and "u" in process.meter.leases:
                process.limiter.drop(process.meter.leases["u"])
            elif extra == 3:
                await process.limiter.work_off()

    asyncio.run(run())


@given(quotas, st.lists(st.tuples(st.sampled_from([0.0, 0.125, 0.25, 1.0, 7.0]), st.integers(1, 5))))
def test_algorithm_never_admits_more_than_the_quota_and_what_time_brings(
    quota: int, events: list[tuple[float, int]]
) -> None:
    clock = Clock()
    exact = Exact(rate_of(quota), clock)
    admitted: list[tuple[float, int]] = []
    for step_s, count in events:
        clock.now += step_s
        admitted += [(clock.now, 1) for _ in range(count * count) if exact.take(1)]
    assert worst_excess(admitted, quota) <= 0


def worst_excess(admitted: list[tuple[float, int]], quota: int) -> float:
    """Return by how many tokens the worst stretch of time is above the quota and what came back in it."""
    moments = sorted({at for at, _ in admitted})
    sums = {moment: sum(tokens for at, tokens in admitted if at == moment) for moment in moments}
    worst = -float(quota)
    for first, start in enumerate(moments):
        total = 0
        for end in moments[first:]:
            total += sums[end]
            worst = max(worst, total - quota - (end - start) / INTERVAL_S)
    return worst


actions = st.one_of(
    st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 40)),
    st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 400)),
    st.tuples(st.just("time"), steps_s, st.just(0)),
    st.tuples(st.sampled_from(["sweep", "drop", "work", "undo"]), st.integers(0, 2), st.integers(0, 3)),
)


@settings(max_examples=200)
@given(quotas, st.lists(actions, max_size=60))
def test_processes_together_stay_within_the_quota_and_their_leases(
    quota: int, events: list[tuple[str, float, int]]
) -> None:
    async def run() -> None:
        store = Switched(Clock())
        processes = [Process(store, limit_of(quota)) for _ in range(3)]
        start = store.clock.now
        admitted: list[tuple[float, int]] = []
        for action, which, count in events:
            if action == "time":
                store.clock.now += which
                continue
            process = processes[int(which)]
            if action == "take":
                admitted += [(store.clock.now, 1) for _ in range(count) if not (await process.ask()).wait_s]
            elif action == "work":
                await process.limiter.work_off()
            elif action == "sweep":
                process.limiter.sweep()
            elif action == "undo":
                verdict = await process.ask()
                if not verdict.wait_s:
                    verdict.undo(1)
            elif "u" in process.meter.leases:
                process.limiter.drop(process.meter.leases["u"])
            assert all(each.held <= each.meter.lease_max for each in processes)
        lease_max = processes[0].meter.lease_max
        assert worst_excess(admitted, quota) <= len(processes) * lease_max
        # Seen from the beginning, when nobody held anything, there is no excess at all.
        assert len(admitted) <= quota + (store.clock.now - start) / INTERVAL_S

    asyncio.run(run())


@settings(max_examples=100)
@given(quotas, st.lists(st.tuples(steps_s, st.integers(0, 12), st.integers(0, 12))))
def test_no_more_is_counted_than_the_quota_and_what_time_brings(
    quota: int, events: list[tuple[float, int, int]]
) -> None:
    """Reservations under way at once, some of which count in the end: as failed log-ins do."""

    async def run() -> None:
        store = Switched(Clock())
        process = Process(store, limit_of(quota))
        counted: list[tuple[float, int]] = []
        for step_s, failing, succeeding in events:
            under_way = [await process.reserve() for _ in range(failing + succeeding)]
            store.clock.now += step_s
            for number, verdict in enumerate(under_way):
                if not verdict.wait_s:
                    verdict.settle(1, is_counted=number < failing)
                    if number < failing:
                        counted.append((store.clock.now, 1))
        assert worst_excess(counted, quota) <= 0
        assert all(lease.reserved == 0 for lease in process.meter.leases.values())

    asyncio.run(run())


@settings(max_examples=100)
@given(
    quotas,
    st.sampled_from(["open", "closed"]),
    st.lists(st.tuples(st.sampled_from(["take", "take", "time", "up", "down", "forget", "work", "sweep"]), steps_s)),
)
def test_store_that_comes_and_goes_costs_nobody_an_error(
    quota: int, store_down: str, events: list[tuple[str, float]]
) -> None:
    async def run() -> None:
        store = Switched(Clock())
        process = Process(store, limit_of(quota, store_down=store_down))
        for event, step_s in events:
            if event == "take":
                await process.burst(20)
            elif event == "time":
                store.clock.now += step_s
            elif event in ("up", "down"):
                store.is_up = event == "up"
            elif event == "forget":
                store.forget()
            elif event == "work":
                await process.limiter.work_off()
            else:
                process.limiter.sweep()
        store.is_up = True
        await process.ask()
        await process.limiter.work_off()
        assert store.is_available
        # A window later everything is as if nothing had been.
        store.clock.now += 3 * quota * INTERVAL_S + 1
        assert passed(await process.burst(quota + 9)) == quota

    asyncio.run(run())


class _NoTimer:
    """Its storage tidies itself up in a thread, by the clock of the wall."""

    def __init__(self, *_: object) -> None: ...

    def start(self) -> None: ...

    def is_alive(self) -> bool:
        return True


@contextmanager
def on_clock(clock: Clock) -> Iterator[memory.MemoryStorage]:
    with (
        patch.object(memory, "time", SimpleNamespace(time=clock)),
        patch.object(memory, "threading", SimpleNamespace(Timer=_NoTimer, RLock=threading.RLock)),
    ):
        yield memory.MemoryStorage()


@given(quota=st.integers(1, 30), steps=st.lists(st.integers(0, 9), max_size=80))
def test_whatever_a_moving_window_admits_is_admitted(quota: int, steps: list[int]) -> None:
    """`limits` counts each request of the last window: our burst and rate are never stricter than that."""
    clock = Clock()
    with on_clock(clock) as storage:
        theirs, item = MovingWindowRateLimiter(storage), RateLimitItemPerSecond(quota, 8)
        exact = Exact(Rate(quota, 8.0), clock)
        for step in steps:
            clock.now += step
            if theirs.hit(item, "u"):
                assert exact.take(1)


@given(quota=st.integers(1, 30), count=st.integers(0, 60))
def test_burst_is_admitted_as_by_a_fixed_window(quota: int, count: int) -> None:
    clock = Clock()
    with on_clock(clock) as storage:
        theirs, item = FixedWindowRateLimiter(storage), RateLimitItemPerSecond(quota, 8)
        exact = Exact(Rate(quota, 8.0), clock)
        for _ in range(count):
            assert exact.take(1) == theirs.hit(item, "u")


@given(quota=st.integers(1, 30), steps=st.lists(st.integers(0, 9), min_size=1, max_size=80))
def test_any_window_admits_less_than_two_of_a_moving_window(quota: int, steps: list[int]) -> None:
    clock = Clock()
    exact = Exact(Rate(quota, 8.0), clock)
    admitted = []
    for step in steps:
        clock.now += step
        admitted += [clock.now] * sum(exact.take(1) for _ in range(quota))
    for first, last in combinations(range(len(admitted)), 2):
        if admitted[last] - admitted[first] < 8:
            assert last - first + 1 < 2 * quota or quota == 1
