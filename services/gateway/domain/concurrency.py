"""How much work a service is given at once: a limit that sinks while requests come late and rises again by itself.

Why not a gradient on latency (Netflix's gradient limits, Envoy's adaptive concurrency)? They compare latency with the least that was
seen, and so throttle a healthy service some of whose calls naturally take a thousand times as long as others (Netflix
concurrency-limits, issue 34). What a caller loses by is a missed deadline, so times are measured in parts of the time that a route
has, and as in CoDel (Nichols and Jacobson 2012, "Controlling queue delay") the quick ones decide whether there is a queue: a mix of
quick and slow calls has quick ones, a queue delays all.

An epoch in which four of five requests took more than half of their time, the quickest of them far longer than at ease, sinks the
limit, by Little's law and in one step: to answer within `TARGET_SHARE` of the time, no more may be under way than (answers per
second) x (that time). While the quickest answers take less than `RISE_SHARE` of the time, or no longer than at ease, the limit rises
by a tenth and one; in between it stays, so that a steady overload meets a steady limit.
"""

from math import inf

from services.gateway.model import Priority

LATE_SHARE = 0.5
LATE_MIN = 0.8
TARGET_SHARE = 0.35
RISE_SHARE = 0.2

MISSED_MIN = 0.5
"""Where so many were not answered at all, the cause does not matter."""

QUEUE_FACTOR = 2.0
"""Quickest answers that take more than twice as long as at ease have waited for others."""

NORMAL_SHARE = 0.9
"""What `normal` requests may use of the limit, so that health checks and log-ins find room when the rest is taken. As many as fit into
what is left are let in even while more is under way than a limit that has just sunk."""

EPOCH_S = 0.25
EPOCH_S_MAX = 60.0
ENDS_MIN = 5
FIRST_CUT_ENDS_MIN = 20
"""An epoch is judged when it has lasted 0.25 s and five requests have ended in it; after 60 s it starts anew. The first cut takes
twenty: five of a healthy service that is slow for most may all be slow by chance."""

LIMIT_MIN = 4.0
"""Per replica; fewer would starve the breaker of the calls it judges by."""

CUT_MAX = 4.0
"""One cut leaves at least a quarter: the answers of one epoch are few."""


class ConcurrencyLimit:
    """Counts what is under way at one service; `in_flight_max` is per replica. `is_adaptive=False` keeps the limit where it is."""

    __slots__ = (
        "_answers",
        "_best_s",
        "_critical",
        "_cut_at",
        "_each",
        "_each_max",
        "_ease_s",
        "_ended",
        "_epoch_at",
        "_is_adaptive",
        "_is_watched",
        "_late",
        "_missed",
        "_normal_max",
        "_replicas",
        "_reserved",
        "_time_s",
        "in_flight",
        "limit",
    )

    def __init__(self, in_flight_max: int, *, replicas: int = 1, is_adaptive: bool = True) -> None:
        self.in_flight = 0
        self._critical = 0
        self._ease_s = self._best_s = inf
        self._cut_at = -inf
        self._begin_epoch(0.0)
        self._replicas = max(1, replicas)
        self._each = 0.0
        self.configure(in_flight_max, is_adaptive=is_adaptive)

    def configure(self, in_flight_max: int, *, is_adaptive: bool) -> None:
        """Start at the top again; what is under way stays counted."""
        self._is_adaptive = is_adaptive
        self._is_watched = False
        self._each_max = float(in_flight_max)
        self._set(self._each_max)

    def resize(self, replicas: int) -> None:
        """Say how many replicas share the work; the limit follows in proportion."""
        self._replicas = max(1, replicas)
        self._set(self._each)

    def _set(self, each: float) -> None:
        self._each = max(min(LIMIT_MIN, self._each_max), min(each, self._each_max))
        self.limit = max(1, int(self._each * self._replicas))
        self._normal_max = self.limit - max(1, round(self.limit * (1 - NORMAL_SHARE))) if self.limit > 1 else 1
        self._reserved = self.limit - self._normal_max

    def has_room(self, priority: Priority) -> bool:
        """Tell whether a request of that priority may begin."""
        if priority == "normal":
            return self.in_flight < self._normal_max
        return self.in_flight < self.limit or self._critical < self._reserved

    def try_begin(self, priority: Priority) -> bool:
        """Count a request in; False where it has to be refused."""
        if priority == "normal":
            if self.in_flight >= self._normal_max:
                return False
        elif self.has_room(priority):
            self._critical += 1
        else:
            return False
        self.in_flight += 1
        return True

    def end(self, took_s: float, time_s: float, now: float, *, is_answer: bool, priority: Priority = "normal") -> None:
        """Count a request out. It took `took_s` of the `time_s` that it had; `now` is in seconds of the clock that timed it.

        `is_answer` says that the service answered it. What was refused, or given up early, says nothing.
        """
        self.in_flight -= 1
        if priority != "normal":
            self._critical -= 1
        is_late = took_s > time_s * LATE_SHARE
        if self._is_watched:
            if is_answer or is_late:
                self._watch(took_s, time_s, now, is_answer=is_answer, is_late=is_late)
        elif is_late:
            if self._is_adaptive:
                self._close_epoch(now)
                self._is_watched = True
                self._watch(took_s, time_s, now, is_answer=is_answer, is_late=True)
        elif is_answer:
            # Nearly every request of a healthy service ends here.
            if took_s < self._best_s:
                self._best_s = took_s
            if now - self._epoch_at > EPOCH_S:
                self._close_epoch(now)

    def cancel(self, priority: Priority = "normal") -> None:
        """Count a request out that says nothing."""
        self.in_flight -= 1
        if priority != "normal":
            self._critical -= 1

    def _watch(self, took_s: float, time_s: float, now: float, *, is_answer: bool, is_late: bool) -> None:
        self._answers += is_answer
        if now - took_s < self._cut_at:
            # It began before the cut, so it says nothing about what that has done.
            return
        self._ended += 1
        self._time_s += time_s
        self._late += is_late
        if not is_answer:
            self._missed += 1
        elif took_s < self._best_s:
            self._best_s = took_s
        if self._ended >= ENDS_MIN and now - self._epoch_at >= EPOCH_S:
            self._judge(now)

    def _judge(self, now: float) -> None:
        lasted_s = now - self._epoch_at
        if lasted_s <= EPOCH_S_MAX:
            time_s = self._time_s / self._ended
            is_queue = self._best_s > QUEUE_FACTOR * self._ease_s
            if self._late >= LATE_MIN * self._ended and (is_queue or self._missed >= MISSED_MIN * self._ended):
                if self._each == self._each_max and self._ended < FIRST_CUT_ENDS_MIN:
                    return
                fitting = self._answers / lasted_s * TARGET_SHARE * time_s / self._replicas
                self._cut_at = now
                self._set(max(self._each / CUT_MAX, min(self._each * 0.9, fitting)))
            elif not is_queue or self._best_s < RISE_SHARE * time_s:
                self._set(self._each * 1.1 + 1)
        self._close_epoch(now)
        self._is_watched = self._each < self._each_max

    def _close_epoch(self, now: float) -> None:
        """Learn how quick the quickest answer is at ease, when none waits for another, and begin an epoch.

        It is never slower than what is seen at any time, what is seen at the lowest limit, or, over time, while half of it is free.
        """
        best_s = self._best_s
        if best_s < self._ease_s or (best_s < inf and self._each <= LIMIT_MIN):
            self._ease_s = best_s
        elif best_s < inf and self.in_flight * 2 <= self.limit:
            self._ease_s += (best_s - self._ease_s) / 8
        self._begin_epoch(now)

    def _begin_epoch(self, now: float) -> None:
        self._epoch_at = now
        self._ended = self._answers = self._late = self._missed = 0
        self._time_s = 0.0
        self._best_s = inf
