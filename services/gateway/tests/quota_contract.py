"""The contract of a store of quotas: facts that hold for every adapter, inherited by its test class."""

import asyncio
import os

import pytest

from services.gateway.domain.gcra import Demand, Rate
from services.gateway.domain.quota import Ask, Grant, QuotaStore, QuotaUnavailable

RATE = Rate(600, 6_000_000.0)
"""So slow that no token comes back while a test runs."""


class QuotaContract:
    """A test class gives the fixture `store`, and `other`: two stores on the same buckets, closed afterwards."""

    @pytest.fixture
    def key(self) -> str:
        """A key that no other test uses, on a server that outlives this run too."""
        return f"test:{os.getpid()}:{os.urandom(6).hex()}"

    async def ask(self, store: QuotaStore, key: str, rate: Rate = RATE, **demand: float) -> Grant:
        (grant,) = await store.lease([Ask(key, rate, Demand(**demand))])
        return grant

    async def test_whole_quota_is_there_at_once_and_nothing_beyond(self, store: QuotaStore, key: str) -> None:
        assert (await self.ask(store, key, wanted=600, least=600)).granted == 600
        assert (await self.ask(store, key, wanted=1, least=1)).granted == 0

    @pytest.mark.parametrize(("quota", "window_s"), [(7, 60.0), (600, 60.0), (1, 1.0), (1000, 86_400.0), (333, 600.0)])
    async def test_tokens_taken_one_by_one_make_the_same_quota(
        self, store: QuotaStore, key: str, quota: int, window_s: float
    ) -> None:
        rate = Rate(quota, window_s * 1e6)
        asks = [Ask(key, rate, Demand(wanted=1, least=1))] * (quota + 1)
        grants = await store.lease(asks)
        assert [grant.granted for grant in grants] == [1] * quota + [0]
        assert [round(grant.remaining(rate)) for grant in grants] == [*range(quota - 1, -1, -1), 0]

    async def test_less_than_wanted_is_granted_but_never_less_than_least(self, store: QuotaStore, key: str) -> None:
        await self.ask(store, key, wanted=590, least=1)
        assert (await self.ask(store, key, wanted=30, least=11)).granted == 0
        assert (await self.ask(store, key, wanted=30, least=10)).granted == 10

    async def test_refusal_takes_nothing(self, store: QuotaStore, key: str) -> None:
        before = await self.ask(store, key, wanted=599, least=1)
        refused = await self.ask(store, key, wanted=2, least=2)
        assert (refused.granted, refused.full_in_s) == (0, pytest.approx(before.full_in_s, abs=60))
        assert (await self.ask(store, key, wanted=1, least=1)).granted == 1

    async def test_grant_says_what_is_left_and_when_the_rest_comes(self, store: QuotaStore, key: str) -> None:
        grant = await self.ask(store, key, wanted=100, least=1)
        assert grant.remaining(RATE) == pytest.approx(500, abs=0.01)
        assert grant.full_in_s == pytest.approx(1_000_000, abs=60)
        assert grant.wait_s(RATE, 500) == pytest.approx(0, abs=60)
        assert grant.wait_s(RATE, 501) == pytest.approx(10_000, abs=60)

    async def test_tokens_come_back_one_by_one_with_time(self, store: QuotaStore, key: str) -> None:
        rate = Rate(20, 1.0)
        assert (await self.ask(store, key, rate, wanted=20, least=1)).granted in (20, 21)
        async with asyncio.timeout(5):
            while not (await self.ask(store, key, rate, wanted=1, least=1)).granted:
                await asyncio.sleep(0.005)

    async def test_lends_ahead_only_on_top_of_what_is_there(self, store: QuotaStore, key: str) -> None:
        await self.ask(store, key, wanted=598, least=1)
        assert (await self.ask(store, key, wanted=10, least=1, ahead=3)).granted == 5
        assert (await self.ask(store, key, wanted=10, least=1, ahead=300)).granted == 0

    async def test_what_is_given_back_can_be_taken_again_once(self, store: QuotaStore, key: str) -> None:
        await self.ask(store, key, wanted=600, least=1)
        assert (await self.ask(store, key, returned=40)).granted == 0
        assert (await self.ask(store, key, wanted=100, least=1)).granted == 40
        assert (await self.ask(store, key, wanted=1, least=1)).granted == 0

    async def test_giving_back_more_than_was_taken_fills_the_bucket_and_no_more(
        self, store: QuotaStore, key: str
    ) -> None:
        await self.ask(store, key, wanted=10, least=1)
        assert (await self.ask(store, key, returned=500)).full_in_s == 0
        assert (await self.ask(store, key, wanted=10_000, least=1)).granted == 600

    async def test_what_the_asker_knows_to_be_spent_counts(self, store: QuotaStore, key: str) -> None:
        owed_s = 100 * RATE.interval_s
        assert (await self.ask(store, key, wanted=600, least=1, owed_s=owed_s)).granted == 500
        assert (await self.ask(store, key, returned=550, owed_s=owed_s)).remaining(RATE) == pytest.approx(500, abs=0.01)

    async def test_nobody_owes_more_than_a_whole_quota(self, store: QuotaStore, key: str) -> None:
        grant = await self.ask(store, key, wanted=1, least=1, owed_s=1e12)
        assert (grant.granted, grant.full_in_s) == (0, pytest.approx(RATE.window_s, abs=60))

    async def test_each_ask_of_one_call_is_settled_in_order(self, store: QuotaStore, key: str) -> None:
        asks = [
            Ask(key, RATE, Demand(wanted=400, least=1)),
            Ask(f"{key}:b", RATE, Demand(wanted=5, least=1)),
            Ask(key, RATE, Demand(wanted=400, least=1)),
            Ask(key, RATE, Demand(returned=100)),
            Ask(key, RATE, Demand(wanted=400, least=1)),
        ]
        assert [grant.granted for grant in await store.lease(asks)] == [400, 5, 200, 0, 100]

    async def test_asking_for_nothing_is_no_fault(self, store: QuotaStore) -> None:
        assert list(await store.lease([])) == []

    async def test_processes_share_a_bucket_without_a_race(
        self, store: QuotaStore, other: QuotaStore, key: str
    ) -> None:
        async def take(which: QuotaStore) -> int:
            return sum([(await self.ask(which, key, wanted=7, least=1)).granted for _ in range(60)])

        assert sum(await asyncio.gather(take(store), take(other))) == 600

    async def test_after_closing_every_ask_is_refused(self, other: QuotaStore, key: str) -> None:
        await other.close()
        with pytest.raises(QuotaUnavailable):
            await self.ask(other, key, wanted=1)
