"""The store of one process keeps the contract, and never more keys than its bound."""

from collections.abc import Sequence

import pytest

from services.gateway.adapters.quota import open_quota_store
from services.gateway.adapters.quota_memory import MemoryQuotaStore
from services.gateway.domain.gcra import Demand, Rate
from services.gateway.domain.quota import Ask, Grant, QuotaStore
from services.gateway.tests.quota_contract import QuotaContract

RATE = Rate(10, 10.0)


class _View(MemoryQuotaStore):
    """A second door to the same buckets, closed by itself."""

    def __init__(self, behind: MemoryQuotaStore) -> None:
        super().__init__()
        self._full_at = behind._full_at

    async def close(self) -> None:
        self._is_closed = True


class TestMemoryQuotaStore(QuotaContract):
    @pytest.fixture
    def store(self) -> QuotaStore:
        return open_quota_store("memory://")

    @pytest.fixture
    def other(self, store: MemoryQuotaStore) -> QuotaStore:
        return _View(store)


async def take(store: MemoryQuotaStore, *keys: str, wanted: int = 1) -> Sequence[Grant]:
    return await store.lease([Ask(key, RATE, Demand(wanted=wanted, least=1)) for key in keys])


async def test_one_key_too_many_makes_it_forget_the_one_used_least_recently() -> None:
    store = MemoryQuotaStore(clock=lambda: 100.0, keys_max=2)
    await take(store, "a", "b", "a", "c")
    a, b = await take(store, "a", "b", wanted=10)
    assert (a.granted, b.granted) == (8, 10)


async def test_full_buckets_are_forgotten() -> None:
    now = 0.0
    store = MemoryQuotaStore(clock=lambda: now)
    for number in range(1000):
        now += 1
        await take(store, f"{number}")
    assert len(store._full_at) < 5


async def test_a_tenth_of_the_window_brings_a_tenth_of_the_quota() -> None:
    now = 5.0
    store = MemoryQuotaStore(clock=lambda: now)
    await take(store, "a", wanted=10)
    now += 0.9995
    assert (await take(store, "a"))[0].granted == 1  # within gcra.SLACK
    now = 6.99
    assert (await take(store, "a"))[0].granted == 0
    now = 15.0
    assert (await take(store, "a", wanted=99))[0].granted == 9


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="memory://, redis:// or rediss://"):
        open_quota_store("http://x")
