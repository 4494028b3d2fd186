"""The generic cell rate algorithm (ITU-T I.371, annex A, "virtual scheduling"), with the whole quota as its burst.

A bucket is one number, its theoretical arrival time (TAT): the moment at which it is full again. Each token taken moves it one
emission interval, `window_s / quota`, further; time itself brings it back. A request conforms when the TAT then lies at most one
window ahead: so `quota` requests pass at once, and one more each interval. No counter is ever reset, so no window has an edge.
"""

from dataclasses import dataclass, field
from math import floor

SLACK = 1e-3
"""Tokens. A sum of intervals is not exact in binary: the last of 600 tokens of a full bucket is there, whatever the rounding."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`quota` tokens at once, and that many again over every `window_s` seconds."""

    quota: int
    window_s: float
    interval_s: float = field(init=False)

    def __post_init__(self) -> None:
        if self.quota < 1 or self.window_s <= 0:
            raise ValueError("a rate needs a quota of at least 1 and a window above 0 s")
        object.__setattr__(self, "interval_s", self.window_s / self.quota)


def tokens_free(rate: Rate, full_in_s: float) -> float:
    """Return how many tokens a bucket holds that will be full in so many seconds; negative where it has lent in advance."""
    return (rate.window_s - max(0.0, full_in_s)) / rate.interval_s


def wait_s(rate: Rate, full_in_s: float, tokens: int) -> float:
    """Return the seconds until so many tokens are there, 0.0 when they are."""
    over_s = max(0.0, full_in_s) + tokens * rate.interval_s - rate.window_s
    return over_s if over_s > SLACK * rate.interval_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of a bucket at one moment: `returned` tokens come back, then up to `wanted` are taken, none unless `least`
    are there; of those wanted, `ahead` may be tokens that the bucket will only have later. `owed_s` is how far from full the
    bucket is at least, in seconds, as the asker knows from what it spent.
    """

    wanted: int = 0
    least: int = 0
    ahead: int = 0
    returned: int = 0
    owed_s: float = 0.0


def settle(rate: Rate, full_in_s: float, demand: Demand) -> tuple[int, float]:
    """Return how many tokens a demand gets, and in how many seconds the bucket is full after that."""
    full_in_s = max(0.0, full_in_s - demand.returned * rate.interval_s, min(demand.owed_s, rate.window_s))
    free = floor(tokens_free(rate, full_in_s) + SLACK)
    granted = max(0, min(demand.wanted, free + demand.ahead)) if free >= demand.least else 0
    return granted, full_in_s + granted * rate.interval_s
