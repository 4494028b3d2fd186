"""Where the buckets of all processes are kept: one Protocol, its adapters are quota_redis and quota_memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from services.gateway.domain.gcra import Demand, Rate, tokens_free, wait_s


class QuotaUnavailable(Exception):
    """The store gave no answer in time; the text names no host and no secret."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One demand on the bucket of a key."""

    key: str
    rate: Rate
    demand: Demand


class Grant(NamedTuple):
    """`granted` tokens were taken; after that the bucket is full in `full_in_s` seconds."""

    granted: int
    full_in_s: float

    def remaining(self, rate: Rate) -> float:
        """Tokens left in the bucket; negative where it has lent in advance."""
        return tokens_free(rate, self.full_in_s)

    def wait_s(self, rate: Rate, tokens: int) -> float:
        """Seconds until so many tokens are there."""
        return wait_s(rate, self.full_in_s, tokens)


class QuotaStore(Protocol):
    """The shared truth of all limits. Every key forgets itself once its bucket is full."""

    @property
    def is_available(self) -> bool:
        """False while the store failed lately: callers decide without it, and one call now and then finds out."""

    async def lease(self, asks: Sequence[Ask]) -> Sequence[Grant]:
        """Settle each ask on its bucket, atomically one by one, in one round trip; the grants come in the order of the asks.

        A give-back is an ask that wants nothing. Raises QuotaUnavailable; then each ask may have been settled or not.
        """

    async def close(self) -> None:
        """Let go of what is open; asks after that raise QuotaUnavailable."""
