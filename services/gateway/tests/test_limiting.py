"""Local leases: one process is exact, many stay within their bound, few calls are made, and a store that fails harms nobody."""

import asyncio
import time

import pytest

from services.gateway.domain.metering import KEEP_S, LEASE_SHARE, WAIT_S
from services.gateway.tests.limiting_rig import Clock, Process, Switched, limit, passed
from services.gateway.tests.rig import eventually
from shared.tasks import Supervisor


@pytest.fixture
def store() -> Switched:
    return Switched(Clock())


@pytest.mark.parametrize("quota", [1, 2, 15, 16, 17, 100, 600])
async def test_one_process_lets_exactly_the_quota_in(store: Switched, quota: int) -> None:
    verdicts = await Process(store, limit(quota)).burst(quota + 20)
    assert passed(verdicts[:quota]) == quota
    assert passed(verdicts[quota:]) == 0


async def test_remaining_falls_by_exactly_one(store: Switched) -> None:
    verdicts = await Process(store, limit(600)).burst(600)
    assert [round(verdict.free, 6) for verdict in verdicts] == list(range(599, -1, -1))


async def test_refusal_says_when_the_next_one_may_pass(store: Switched) -> None:
    process = Process(store, limit(10, 600))
    await process.burst(10)
    store.clock.now += 20
    refused = await process.ask()
    assert (refused.wait_s, int(refused.free)) == (pytest.approx(40, abs=0.1), 0)
    store.clock.now += refused.wait_s
    assert not (await process.ask()).wait_s


async def test_refusals_make_no_calls(store: Switched) -> None:
    process = Process(store, limit(20, 600))
    await process.burst(21)
    calls = store.calls
    await process.burst(500)
    assert store.calls == calls


async def test_a_burst_makes_less_than_a_call_for_twenty_requests(store: Switched) -> None:
    assert passed(await Process(store, limit(600)).burst(600)) == 600
    assert store.calls < 30


@pytest.mark.parametrize("every_s", [0.11, 0.2, 1.0])
async def test_steady_requests_make_less_than_a_call_for_twenty(store: Switched, every_s: float) -> None:
    process = Process(store, limit(600))
    for _ in range(100):
        await process.ask()
        store.clock.now += every_s
    calls = store.calls
    for _ in range(1000):
        assert not (await process.ask()).wait_s
        await process.limiter.work_off()
        process.limiter.sweep()
        store.clock.now += every_s
    assert store.calls - calls < 50


async def test_client_above_its_limit_makes_less_than_a_call_for_ten_requests(store: Switched) -> None:
    process = Process(store, limit(600))
    await process.burst(600)
    calls, admitted = store.calls, 0
    for _ in range(1200):
        store.clock.now += 0.05
        admitted += not (await process.ask()).wait_s
        await process.limiter.work_off()
    assert admitted == pytest.approx(600, abs=1)
    assert store.calls - calls < 120


async def test_lease_starts_with_one_and_grows_to_its_share_of_the_quota(store: Switched) -> None:
    process = Process(store, limit(640))
    await process.ask()
    assert process.held == 0
    most = 0
    for _ in range(100):
        await process.ask()
        await process.limiter.work_off()
        most = max(most, process.held)
    assert most == 640 / LEASE_SHARE == process.meter.lease_max


async def test_lease_is_filled_again_before_it_is_empty(store: Switched) -> None:
    process = Process(store, limit(600))
    await process.burst(50)
    for _ in range(400):
        assert process.meter.take("u") is not None
        await process.limiter.work_off()


async def test_two_processes_let_in_one_quota_together_when_their_leases_are_spent(store: Switched) -> None:
    processes = [Process(store, limit(600)), Process(store, limit(600))]
    verdicts = [await processes[number % 2].ask() for number in range(1000)]
    assert passed(verdicts) == 600


async def test_what_one_process_holds_is_refused_to_the_other_until_it_is_given_back(store: Switched) -> None:
    rate = limit(32, 32_000)
    first, second = Process(store, rate), Process(store, rate)
    await first.burst(2)
    assert first.held == 1
    assert passed(await second.burst(40)) == 29
    store.clock.now += KEEP_S
    first.limiter.sweep()
    await first.limiter.work_off()
    assert passed(await second.burst(10)) == 1


async def test_keys_have_quotas_of_their_own(store: Switched) -> None:
    process = Process(store, limit(5))
    assert passed(await process.burst(9, "a")) == 5
    assert passed(await process.burst(9, "b")) == 5


async def test_cost_is_taken_whole_or_not_at_all(store: Switched) -> None:
    process = Process(store, limit(10, 1000))
    assert [not (await process.ask(cost=4)).wait_s for _ in range(4)] == [True, True, False, False]
    refused = await process.ask(cost=4)
    assert refused.wait_s == pytest.approx(200, abs=1)
    assert [not (await process.ask()).wait_s for _ in range(3)] == [True, True, False]


async def test_request_that_is_undone_costs_nothing(store: Switched) -> None:
    process = Process(store, limit(5, 1000))
    for _ in range(50):
        verdict = await process.ask()
        verdict.undo(1)
    assert passed(await process.burst(9)) == 5


async def test_reserved_tokens_count_only_when_it_is_said_so(store: Switched) -> None:
    process = Process(store, limit(3, 1000))
    for _ in range(20):
        (await process.reserve()).settle(1, is_counted=False)
    assert passed([await process.ask()]) == 1
    for _ in range(2):
        (await process.reserve()).settle(1, is_counted=True)
    assert (await process.reserve()).wait_s


async def test_reserved_tokens_are_refused_to_others_meanwhile(store: Switched) -> None:
    process = Process(store, limit(3, 1000))
    under_way = [await process.reserve() for _ in range(3)]
    assert (await process.reserve()).wait_s
    under_way[0].settle(1, is_counted=False)
    assert not (await process.reserve()).wait_s


async def test_many_reservations_at_once_do_not_use_the_quota_up(store: Switched) -> None:
    process = Process(store, limit(100, 600))
    for _ in range(200):
        under_way = [await process.reserve() for _ in range(50)]
        store.clock.now += 0.1
        for verdict in under_way:
            assert not verdict.wait_s
            verdict.settle(1, is_counted=False)
        assert process.held <= process.meter.lease_max
        await process.limiter.work_off()
    assert passed(await process.burst(120)) == 100


async def test_reservation_outlives_its_lease(store: Switched) -> None:
    process = Process(store, limit(10, 10_000))
    counted, returned = await process.reserve(), await process.reserve()
    process.limiter.drop(process.meter.leases["u"])
    await process.limiter.work_off()
    counted.settle(1, is_counted=True)
    returned.settle(1, is_counted=False)
    await process.limiter.work_off()
    assert passed(await process.burst(12)) == 9


async def test_waiting_requests_of_a_key_share_one_call(store: Switched) -> None:
    process = Process(store, limit(600))
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(process.meter.wait("u")) for _ in range(50)]
        await asyncio.sleep(0)
        await process.limiter.work_off()
    assert passed([task.result() for task in waiting]) == 50
    assert store.calls == 1


async def test_waiting_requests_of_many_keys_share_one_call(store: Switched) -> None:
    process = Process(store, limit(600))
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(process.meter.wait(f"{number}")) for number in range(100)]
        await asyncio.sleep(0)
        await process.limiter.work_off()
    assert passed([task.result() for task in waiting]) == 100
    assert store.calls == 1


async def test_waiting_requests_of_different_cost_are_decided_in_their_order(store: Switched) -> None:
    process = Process(store, limit(10, 1000))
    await process.burst(6)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(process.meter.wait("u", cost)) for cost in (5, 3, 2, 1)]
        await asyncio.sleep(0)
        await process.limiter.work_off()
    assert [not task.result().wait_s for task in waiting] == [False, True, False, True]


async def test_request_that_goes_while_it_waits_costs_nothing(store: Switched) -> None:
    process = Process(store, limit(5, 1000))
    for is_reserved in (False, True):
        waiting = asyncio.get_running_loop().create_task(process.meter.wait("u", is_reserved=is_reserved))
        await asyncio.sleep(0)
        await process.limiter.work_off()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await process.limiter.work_off()
    assert process.meter.leases["u"].reserved == 0
    assert passed(await process.burst(9)) == 5


async def test_tokens_of_many_that_have_gone_go_back_to_the_store(store: Switched) -> None:
    first, second = Process(store, limit(100, 10_000)), Process(store, limit(100, 10_000))
    waiting = [asyncio.get_running_loop().create_task(first.meter.wait("u")) for _ in range(80)]
    await asyncio.sleep(0)
    asking = asyncio.get_running_loop().create_task(first.limiter.work_off())
    for task in waiting:
        task.cancel()
    await asyncio.wait([asking, *waiting])
    assert first.held <= first.meter.lease_max
    assert passed(await second.burst(120)) == 100 - first.held


async def test_key_that_is_not_used_for_a_minute_is_forgotten(store: Switched) -> None:
    process = Process(store, limit(600))
    await process.burst(30, "a")
    store.clock.now += KEEP_S / 2
    await process.burst(30, "b")
    store.clock.now += KEEP_S / 2
    process.limiter.sweep()
    assert list(process.meter.leases) == ["b"]


async def test_one_key_too_many_gives_back_the_least_recently_used(store: Switched) -> None:
    process = Process(store, limit(64, 64_000), keys_max=2)
    await process.burst(3, "a")
    await process.burst(3, "b")
    await process.burst(1, "a")
    await process.burst(1, "c")
    await process.limiter.work_off()
    assert list(process.meter.leases) == ["a", "c"]
    assert passed(await process.burst(99, "b")) == 61


async def test_forgotten_key_owes_what_it_spent(store: Switched) -> None:
    """Also what it spent from a lease that was older than the bucket's memory."""
    process = Process(store, limit(160))
    await process.burst(28)
    store.clock.now += 59
    old = process.held
    assert old
    assert passed([process.meter.take("u") for _ in range(old)]) == old  # type: ignore[misc]
    process.limiter.drop(process.meter.leases["u"])
    await process.limiter.work_off()
    assert passed(await process.burst(200)) == 160 - old


async def test_closing_gives_back_what_is_held(store: Switched) -> None:
    first, second = Process(store, limit(320, 80_000)), Process(store, limit(320, 80_000))
    await first.burst(30)
    assert first.held
    await first.limiter.close()
    assert passed(await second.burst(400)) == 290


class TestWithoutTheStore:
    """While it is away each process spends a quarter of the quota; nothing raises and nothing waits."""

    async def test_share_is_spent_and_then_everything_is_let_in(self, store: Switched) -> None:
        process = Process(store, limit(100))
        store.is_up = store.is_available = False
        verdicts = await process.burst(200)
        assert passed(verdicts) == 200
        assert [int(verdict.free + 0.001) for verdict in verdicts[:26]] == [*range(24, -1, -1), 0]

    async def test_share_is_spent_and_then_everything_is_refused(self, store: Switched) -> None:
        process = Process(store, limit(100, store_down="closed"))
        store.is_up = store.is_available = False
        verdicts = await process.burst(200)
        assert passed(verdicts[:25]) == passed(verdicts) == 25
        assert verdicts[-1].wait_s == pytest.approx(2.4, abs=0.1)

    async def test_no_request_waits_for_a_store_that_is_known_to_be_away(self, store: Switched) -> None:
        process = Process(store, limit(100))
        store.is_up = store.is_available = False
        assert all(process.meter.take(f"{number}") for number in range(50))

    async def test_those_who_wait_when_it_fails_are_decided_at_once(self, store: Switched) -> None:
        process = Process(store, limit(100, store_down="closed"))
        store.is_up = False
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(process.meter.wait(f"{number}")) for number in range(300)]
            await asyncio.sleep(0)
            await process.limiter.work_off()
            assert store.calls == 1
        assert passed([task.result() for task in waiting]) == 300

    async def test_tokens_held_from_before_are_spent_first(self, store: Switched) -> None:
        process = Process(store, limit(160, store_down="closed"))
        await process.burst(28)
        held = process.held
        assert held
        store.is_up = store.is_available = False
        assert passed(await process.burst(200)) == held + 40

    async def test_what_was_spent_meanwhile_counts_when_it_is_back(self, store: Switched) -> None:
        process = Process(store, limit(100, 10_000))
        store.is_up = store.is_available = False
        await process.burst(70)
        store.is_up = True
        await process.limiter.work_off()
        assert store.is_available
        assert passed(await process.burst(100)) == 30
        assert passed(await Process(store, limit(100, 10_000)).burst(100)) == 0

    async def test_store_that_lost_its_memory_learns_what_was_spent(self, store: Switched) -> None:
        process = Process(store, limit(100, 10_000))
        await process.burst(60)
        store.forget()
        assert passed(await process.burst(100)) == 40
        assert passed(await Process(store, limit(100, 10_000)).burst(100)) <= 100 - 60

    async def test_undone_and_uncounted_requests_give_no_tokens_of_the_store(self, store: Switched) -> None:
        process = Process(store, limit(100, 10_000, store_down="closed"))
        store.is_up = store.is_available = False
        for _ in range(60):
            (await process.ask()).undo(1)
            (await process.reserve()).settle(1, is_counted=False)
        assert process.held == 0
        assert passed(await process.burst(60)) == 25

    async def test_process_whose_store_only_hangs_decides_by_itself_in_time(self, store: Switched) -> None:
        process = Process(store, limit(100))
        async with asyncio.timeout(WAIT_S * 20):
            assert not (await process.meter.wait("u")).wait_s

    async def test_late_loop_does_not_make_a_process_decide_by_itself(self, store: Switched) -> None:
        process = Process(store, limit(100))
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(process.meter.wait("u"))
            asyncio.get_running_loop().call_soon(time.sleep, WAIT_S * 1.5)
            for _ in range(2):
                await asyncio.sleep(0)
            await process.limiter.work_off()
        assert waiting.result().is_leased

    async def test_it_is_asked_again_only_when_somebody_needs_it(self, store: Switched) -> None:
        process = Process(store, limit(100))
        store.is_up = store.is_available = False
        await process.ask()
        await process.limiter.work_off()
        calls = store.calls
        await process.limiter.work_off()
        assert store.calls == calls
        await process.ask()
        store.is_up = True
        await process.limiter.work_off()
        assert store.is_available

    async def test_running_limiter_recovers_by_itself(self, store: Switched) -> None:
        process = Process(store, limit(10_000))
        async with Supervisor() as tasks:
            tasks.start("limits", process.limiter.run)
            assert not (await process.meter.wait("u")).wait_s
            store.is_up = False
            for number in range(20):
                process.meter.take(f"{number}") or await process.meter.wait(f"{number}")
            assert not store.is_available
            store.is_up = True

            def recovers() -> bool:
                process.meter.take("u")
                return store.is_available

            await eventually(recovers)
            assert process.meter.take("new") is None
            assert not (await process.meter.wait("new")).wait_s
