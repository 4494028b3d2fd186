"""The adaptive limit, in simulations on a clock of their own: arrivals, a queue, and workers that do not see a caller's deadline."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.concurrency import LIMIT_MIN, ConcurrencyLimit
from services.gateway.model import Priority

TIME_S = 2.0
Dice = random.Random


@dataclass
class Service:
    """`workers` take requests first come, first served; each takes what `work_s` says. While `hangs_until`, nothing is done.

    A request that its caller has given up is worked on like any other: what makes overload a collapse.
    """

    limit: ConcurrencyLimit
    rate: float
    workers: int
    work_s: Callable[[Dice], float]
    time_s: float = TIME_S
    hangs_until: float = 0.0
    quick_until: float = 0.0
    good: list[float] = field(default_factory=list)
    refused: int = 0
    in_flight_max: int = 0
    limits: list[tuple[float, int]] = field(default_factory=list)

    def run(self, seconds: float) -> "Service":
        self._dice = Dice(7)
        self._events: list[tuple[float, int, str, int]] = []
        self._begun: dict[int, float] = {}
        self._queue: deque[int] = deque()
        self._busy = 0
        self._number = 0
        self._at(0.0, "arrive", 0)
        self._at(self.hangs_until, "wake", 0)
        while self._events[0][0] < seconds:
            now, _, kind, which = heapq.heappop(self._events)
            getattr(self, f"_{kind}")(now, which)
            self.in_flight_max = max(self.in_flight_max, self.limit.in_flight)
            self.limits.append((now, self.limit.limit))
        return self

    def _at(self, when: float, kind: str, which: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, kind, which))

    def _arrive(self, now: float, _: int) -> None:
        self._at(now + self._dice.expovariate(self.rate), "arrive", 0)
        if not self.limit.try_begin("normal"):
            self.refused += 1
            return
        request = self._number
        self._begun[request] = now
        self._queue.append(request)
        self._at(now + self.time_s, "miss", request)
        self._work(now)

    def _work(self, now: float) -> None:
        while self._queue and self._busy < self.workers and now >= self.hangs_until:
            self._busy += 1
            work_s = 0.01 if now < self.quick_until else self.work_s(self._dice)
            self._at(now + work_s, "answer", self._queue.popleft())

    def _wake(self, now: float, _: int) -> None:
        self._work(now)

    def _answer(self, now: float, request: int) -> None:
        self._busy -= 1
        begun = self._begun.pop(request, None)
        if begun is not None:
            self.good.append(now)
            self.limit.end(now - begun, self.time_s, now, is_answer=True)
        self._work(now)

    def _miss(self, now: float, request: int) -> None:
        begun = self._begun.pop(request, None)
        if begun is not None:
            self.limit.end(now - begun, self.time_s, now, is_answer=False)

    @property
    def limit_lowest(self) -> int:
        return min(limit for _, limit in self.limits)

    def goodput(self, since: float, until: float) -> float:
        """Answers in time, per second."""
        return sum(since <= at < until for at in self.good) / (until - since)


def exponential(mean_s: float) -> Callable[[Dice], float]:
    return lambda dice: dice.expovariate(1 / mean_s)


def overloaded(workers: int, mean_s: float, *, is_adaptive: bool, time_s: float = TIME_S) -> tuple[Service, float]:
    peak = workers / mean_s
    limit = ConcurrencyLimit(256, is_adaptive=is_adaptive)
    return Service(limit, 3 * peak, workers, exponential(mean_s), time_s), peak


@pytest.mark.parametrize(("workers", "mean_s", "time_s"), [(4, 0.1, 2.0), (2, 0.02, 0.5), (1, 0.5, 10.0)])
def test_three_times_the_load_keeps_four_fifths_of_the_peak(workers, mean_s, time_s):
    service, peak = overloaded(workers, mean_s, is_adaptive=True, time_s=time_s)
    seconds = 30 * time_s
    service.run(seconds)
    assert service.goodput(0, seconds) >= 0.8 * peak
    assert service.goodput(seconds / 2, seconds) >= 0.9 * peak
    assert service.refused > 0


@pytest.mark.parametrize(("workers", "mean_s", "time_s"), [(4, 0.1, 2.0), (2, 0.02, 0.5), (1, 0.5, 10.0)])
def test_without_it_the_same_load_is_a_collapse(workers, mean_s, time_s):
    service, peak = overloaded(workers, mean_s, is_adaptive=False, time_s=time_s)
    seconds = 30 * time_s
    service.run(seconds)
    assert service.goodput(0, seconds) < 0.5 * peak
    assert service.goodput(seconds / 2, seconds) < 0.05 * peak


@pytest.mark.parametrize("slow_share", [0.1, 0.5, 0.75])
def test_healthy_service_of_quick_and_slow_calls_is_not_throttled(slow_share):
    def work_s(dice: Dice) -> float:
        return 1.5 if dice.random() < slow_share else 0.002

    service = Service(ConcurrencyLimit(256), rate=60, workers=1000, work_s=work_s).run(60)
    assert service.limit_lowest == 256
    assert service.refused == 0


def test_service_that_is_slow_for_everyone_by_nature_is_not_throttled():
    service = Service(ConcurrencyLimit(256), rate=60, workers=1000, work_s=lambda dice: dice.uniform(1.2, 1.8)).run(60)
    assert service.limit_lowest == 256


def test_service_that_became_slow_for_everyone_at_once_is_let_in_again():
    service = Service(ConcurrencyLimit(256), rate=60, workers=1000, work_s=lambda _: 1.3, quick_until=20)
    service.run(90)
    assert service.limit_lowest < 256
    assert service.limits[-1][1] == 256
    assert service.goodput(70, 90) >= 0.95 * 60


def test_load_that_the_service_can_bear_is_never_refused():
    service = Service(ConcurrencyLimit(256), rate=32, workers=4, work_s=exponential(0.1)).run(120)
    assert service.refused == 0


def test_hanging_service_never_has_more_than_its_limit_and_soon_little():
    service = Service(ConcurrencyLimit(64), rate=200, workers=50, work_s=lambda _: 0.01, hangs_until=1000).run(20)
    assert service.in_flight_max <= 64
    assert service.limit.limit == LIMIT_MIN
    assert service.limit.in_flight <= LIMIT_MIN


def test_it_comes_back_by_itself_when_the_service_does():
    service = Service(ConcurrencyLimit(256), rate=200, workers=50, work_s=lambda _: 0.01, hangs_until=20).run(40)
    assert service.limit_lowest == LIMIT_MIN
    assert service.limit.limit == 256
    # The first two seconds clear what was under way when it came back.
    assert service.goodput(25, 40) >= 0.95 * 200


def test_lasting_overload_meets_a_limit_between_idle_workers_and_missed_deadlines():
    service, _ = overloaded(4, 0.1, is_adaptive=True)
    service.run(60)
    settled = [limit for at, limit in service.limits if at > 30]
    # Forty answers come a second, so eighty under way would all miss.
    assert min(settled) >= 2 * service.workers
    assert max(settled) <= 0.8 * 80


@given(st.integers(1, 300), st.integers(1, 5))
def test_critical_requests_find_room_when_normal_ones_are_refused(in_flight_max, replicas):
    limit = ConcurrencyLimit(in_flight_max, replicas=replicas)
    assert limit.limit == in_flight_max * replicas
    while limit.has_room("normal"):
        assert limit.try_begin("normal")
    assert not limit.try_begin("normal")
    assert limit.in_flight >= 1
    critical = 0
    while limit.try_begin("critical"):
        critical += 1
    assert limit.in_flight == limit.limit
    assert critical >= (limit.limit > 1)
    assert critical <= limit.limit * 0.1 + 1


def test_critical_requests_keep_their_part_of_a_limit_that_has_sunk_below_what_is_under_way():
    limit = ConcurrencyLimit(100, replicas=3)
    while limit.try_begin("normal"):
        pass
    limit.resize(1)
    assert limit.in_flight > limit.limit == 100
    begun = 0
    while limit.try_begin("critical"):
        begun += 1
    assert begun == 10
    assert not limit.has_room("critical")
    limit.end(0.1, TIME_S, 1.0, is_answer=True, priority="critical")
    assert limit.try_begin("critical")
    limit.cancel("critical")
    assert limit.try_begin("critical")
    assert not limit.try_begin("normal")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "vital", "answer", "miss", "cancel", "resize"]),
            st.floats(0, 3),
            st.integers(1, 4),
        ),
        max_size=300,
    )
)
def test_count_is_exact_and_the_limit_within_its_bounds_whatever_happens(events):
    limit, now = ConcurrencyLimit(20), 0.0
    begun: list[tuple[float, Priority]] = []
    replicas = 1
    for kind, pause_s, number in events:
        now += pause_s
        if kind in ("begin", "vital"):
            priority: Priority = "critical" if kind == "vital" else "normal"
            has_room = len(begun) < limit.limit
            if kind == "vital":
                has_room |= [begun_as for _, begun_as in begun].count("critical") < max(1, round(limit.limit * 0.1))
            assert limit.has_room(priority) <= has_room
            is_begun = limit.try_begin(priority)
            assert kind == "begin" or is_begun == has_room
            assert is_begun <= has_room
            if is_begun:
                begun.append((now, priority))
        elif kind == "resize":
            replicas = number
            limit.resize(replicas)
        elif begun:
            at, priority = begun.pop(number % len(begun))
            if kind == "cancel":
                limit.cancel(priority)
            else:
                limit.end(now - at, TIME_S, now, is_answer=kind == "answer", priority=priority)
        assert limit.in_flight == len(begun)
        assert LIMIT_MIN * replicas <= limit.limit <= 20 * replicas


def test_limit_follows_the_number_of_replicas():
    limit = ConcurrencyLimit(10, replicas=2)
    assert limit.limit == 20
    limit.resize(3)
    assert limit.limit == 30
    limit.resize(0)
    assert limit.limit == 10
