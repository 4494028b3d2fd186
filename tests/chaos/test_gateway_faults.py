"""What the gateway does for its clients while services fail, hang, drown and come back, all in processes of their own.

Each fault is also shown with its protection switched off by configuration: there what the protection is for really happens, so that
no test passes because nothing did.
"""

import asyncio
import contextlib
import signal
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.gateway.adapters.quota_redis import KEY_PREFIX
from services.gateway.tests.rig import write_endpoints
from shared.testing.processes import RedisProcess
from tests.chaos.rig import Child, Service, standing
from tests.chaos.traffic import Answers, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

NEVER_OPENS = "breaker = {window = 1000, volume_min = 1000, window_s = 0.001}"
STAYS_OPEN = "breaker = {open_s = 60}"
DEADLINE_S = 2.0
ROOM_S = 1.0
"""For a machine that is busy with other things."""

CODES = {"no_upstream", "breaker_open"}


def route(path: str, service: str = "", *, timeout_s: float = DEADLINE_S, more: str = "") -> str:
    return f"""
[[routes]]
path = "/{path}"
service = "{service or path}"
methods = ["GET", "POST"]
auth = "public"
timeout_s = {timeout_s}
{more}
"""


def policy(service: str, *lines: str) -> str:
    return "\n".join((f"[services.{service}]", *lines, ""))


async def came(answers: Answers, path: str, count: int, *, status: int = 200) -> None:
    """Wait until so many more calls of a path have been answered with a status."""
    wanted = answers.of(path).statuses[status] + count
    await until(lambda: answers.of(path).statuses[status] >= wanted, f"{count} more {status} of {path}")


# A service that is gone.


@pytest.mark.parametrize("protection", ["protected", "unprotected: no breaker", "unprotected: breaker stays open"])
async def test_killed_service_is_refused_at_once_and_comes_back_by_itself(tmp_path: Path, protection: str) -> None:
    lost, other = [Service(), Service()], Service()
    lines = {"unprotected: no breaker": NEVER_OPENS, "unprotected: breaker stays open": STAYS_OPEN}
    config = route("lost") + route("other") + policy("lost", lines.get(protection, ""))
    async with standing(tmp_path, {"lost": lost, "other": [other]}, config) as rig:
        answers = rig.caller.answers
        async with rig.caller.steadily(["/lost", "/other"], per_s=100):
            await came(answers, "/lost", 50)
            for replica in lost:
                await replica.stop()
            killed_at = time.monotonic()
            if protection == "unprotected: no breaker":
                await came(answers, "/lost", 100, status=503)
                assert await rig.metric("upstream_breaker", service="lost") == 0
            else:
                await rig.until_metric("upstream_breaker", 1, service="lost", timeout_s=2)
            await came(answers, "/lost", 100, status=503)
            refused = await rig.metric("upstream_replica_attempts_total", service="lost", outcome="refused")
            down = len(answers.of("/lost", since=killed_at))
            for replica in lost:
                await replica.start()
            if protection == "unprotected: breaker stays open":
                with pytest.raises(AssertionError, match="did not become 0"):
                    await rig.until_metric("upstream_breaker", 0, service="lost", timeout_s=5)
            else:
                await rig.until_metric("upstream_breaker", 0, service="lost", timeout_s=5)
                since = time.monotonic()
                await came(answers, "/lost", 50)
                assert set(answers.of("/lost", since=since).statuses) == {200}
    # Without its breaker the dead service is asked again and again, each call at both addresses.
    assert (refused > down) is (protection == "unprotected: no breaker")
    assert set(answers.of("/other").statuses) == {200}
    assert set(answers.of("/lost").statuses) == {200, 503}
    assert set(answers.of("/lost").codes) <= CODES
    assert max(answer.took_s for answer in answers.of("/lost").all) < DEADLINE_S + ROOM_S


# A service that hangs.


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected"])
async def test_hanging_service_is_504_in_time_and_costs_the_others_nothing(tmp_path: Path, is_protected: bool) -> None:
    hung, other = Service(), Service()
    limit = "in_flight_max = 20" if is_protected else "in_flight_max = 10000\nadaptive = false"
    config = route("hung") + route("other") + policy("hung", limit, NEVER_OPENS)
    async with standing(tmp_path, {"hung": [hung], "other": [other]}, config, RH_GATEWAY_CONNECTIONS_MAX="100") as rig:
        answers = rig.caller.answers
        hung.stand_still()
        # Each client has a connection of its own and keeps it no longer than its call.
        async with rig.caller.steadily(["/hung", "/other"], per_s=120, keeps=False):
            await until(lambda: len(answers.of("/other")) >= 200, "200 answers of /other")
    late = Answers([answer for answer in answers.of("/hung").all if answer.status == 504])
    others = answers.of("/other")
    if is_protected:
        assert set(others.statuses) == {200}
        assert others.median_s() < DEADLINE_S / 20
        assert set(answers.of("/hung").codes) == {"overloaded", "deadline_exceeded"}
        assert len(late) >= 10
        assert all(DEADLINE_S - 0.1 < answer.took_s < DEADLINE_S + ROOM_S for answer in late.all)
    else:
        # What hangs holds the gateway's connections, and clients of the other service are turned away.
        assert others.codes["too_many_connections"] > 20


# A service that fails: repeats must not become the load that keeps it down.


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected"])
@pytest.mark.parametrize("behaviour", [{"status": 502}, {"resets": True}], ids=["502", "resets"])
async def test_failing_service_is_asked_little_more_than_it_was_called(
    tmp_path: Path, behaviour: dict[str, object], is_protected: bool
) -> None:
    failing, calls = Service(), 1000
    # Without the breaker, which would hide how much the repeats are.
    config = route("failing") + policy("failing", NEVER_OPENS, "" if is_protected else "retry_share = 1")
    async with standing(tmp_path, {"failing": [failing]}, config) as rig:
        assert (await rig.caller.calls("/failing", 200)).statuses == {200: 200}
        before = await failing.arrived()
        await failing.behave(**behaviour)
        assert (await rig.caller.calls("/failing", calls, at_once=16)).statuses == {502: calls}
        amplification = (await failing.arrived() - before) / calls
    if is_protected:
        assert 1 <= amplification <= 1.2
    else:
        assert amplification > 1.5


# A service that is asked three times what it can do.

SLOTS, WORK_S = 8, 0.08
CAPACITY_PER_S = SLOTS / WORK_S


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected"])
async def test_overload_leaves_goodput_as_it_was_and_important_calls_first(tmp_path: Path, is_protected: bool) -> None:
    busy = Service(slots=SLOTS, time_s=WORK_S)
    lines = [] if is_protected else ["in_flight_max = 10000", "adaptive = false", NEVER_OPENS]
    config = (
        route("busy", timeout_s=1)
        + route("log-in", "busy", timeout_s=1, more='priority = "critical"')
        + policy("busy", *lines)
    )
    async with standing(tmp_path, {"busy": [busy]}, config) as rig:
        began_at = time.monotonic()
        assert set((await rig.caller.calls("/busy", 60, at_once=SLOTS + 2)).statuses) == {200}
        peak_per_s = 60 / (time.monotonic() - began_at)
        answers = rig.caller.answers
        async with (
            rig.caller.steadily(["/busy"], per_s=3 * CAPACITY_PER_S),
            rig.caller.steadily(["/log-in"], per_s=0.05 * CAPACITY_PER_S),
        ):
            # At first nobody knows that the answers will be late; then those are refused that would be.
            await until(lambda: answers.of("/busy").statuses[504] > 0, "late answers")
            if not is_protected:
                # None comes in time, the important ones as little as the rest: the service works for those who have left.
                for path, count in (("/busy", 200), ("/log-in", 5)):
                    await until(
                        lambda path=path, count=count: answers.last(path, count).share_of(504) == 1, "only late ones"
                    )
                return
            await until(lambda: set(answers.last("/busy", 200).codes) == {"overloaded"}, "a steady state")
            await until(lambda: answers.last("/log-in", 5).share_of(200) == 1, "log-ins that get through")
            since = time.monotonic()
            await until(lambda: len(answers.of("/busy", since=since)) >= 3 * 3 * CAPACITY_PER_S, "3 s of calls")
            lasted_s = time.monotonic() - since
    found, important = answers.of("/busy", since=since), answers.of("/log-in", since=since)
    goodput = (found.statuses[200] + important.statuses[200]) / lasted_s / peak_per_s
    refused = Answers([answer for answer in found.all if answer.status == 503])
    assert goodput >= 0.8
    # A busy machine may make an answer late.
    assert found.codes["overloaded"] + found.statuses[200] >= 0.98 * len(found)
    assert set(found.statuses) >= {200, 503}
    assert all(answer.message.get("retry-after") for answer in refused.all if answer.message)
    assert refused.median_s() < 0.05
    assert important.share_of(200) >= 0.9


# One replica of three is bad.

PROBES_MAX = 4
"""Of 150 calls, which take as long as the breaker stays open: a call now and then finds out whether it has healed."""

KINDS = {"502": {"status": 502}, "resets": {"resets": True}, "slow": {"time_s": 0.12}}


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected"])
@pytest.mark.parametrize("kind", KINDS)
async def test_bad_replica_is_left_out_until_it_heals(tmp_path: Path, kind: str, is_protected: bool) -> None:
    replicas = [Service() for _ in range(3)]
    bad = replicas[0]
    config = route("spread") + policy(
        "spread",
        "breaker = {volume_min = 5, open_s = 1.5, probes = 1, slow_s = 0.05}",
        "" if is_protected else "ejected_share_max = 0",
    )
    async with standing(tmp_path, {"spread": replicas}, config) as rig:
        answers = rig.caller.answers
        # POST, so that no repeat hides what a replica does.
        async with rig.caller.steadily(["/spread"], per_s=100, method="POST"):
            await came(answers, "/spread", 30)
            await bad.behave(**KINDS[kind])
            await rig.until_metric("upstream_replica_breaker", 1, service="spread", replica=bad.address)
            before, since = await bad.arrived(), time.monotonic()
            await until(lambda: len(answers.of("/spread", since=since)) >= 150, "150 answers")
            spoiled = await bad.arrived() - before
            if not is_protected:
                # A slow one gets less than its third anyhow: the less busy of two is asked.
                assert spoiled > PROBES_MAX
                return
            assert spoiled <= PROBES_MAX
            assert answers.of("/spread", since=since).statuses[200] >= 146
            await bad.behave()
            await rig.until_metric("upstream_replica_breaker", 0, service="spread", replica=bad.address)
            before, since = await bad.arrived(), time.monotonic()
            while await bad.arrived() < before + 20:
                await asyncio.sleep(0.05)
            assert set(answers.of("/spread", since=since).statuses) == {200}


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected"])
async def test_replicas_that_fail_together_are_not_all_left_out(tmp_path: Path, is_protected: bool) -> None:
    replicas = [Service() for _ in range(3)]
    config = route("spread") + policy(
        "spread", "breaker = {volume_min = 5}", f"ejected_share_max = {0.5 if is_protected else 0.9}"
    )
    async with standing(tmp_path, {"spread": replicas}, config) as rig:
        for bad in replicas[:2]:
            await bad.behave(status=502)
        async with rig.caller.steadily(["/spread"], per_s=100, method="POST"):
            for bad in replicas[:2]:
                await rig.until_metric("upstream_replica_breaker", 1, service="spread", replica=bad.address)
            before = [await replica.arrived() for replica in replicas]
            await came(rig.caller.answers, "/spread", 100)
            more = [await replica.arrived() - count for replica, count in zip(replicas, before, strict=True)]
    # The last is never left out. One of three may be, and the two that bear its load are asked, good or bad.
    assert more[2] >= 80
    assert (max(more[:2]) >= 20) is is_protected
    assert set(rig.caller.answers.codes) == {"status 502"}


# A service whose replicas are replaced one after the other.


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected"])
async def test_replicas_replaced_one_by_one_lose_no_call(tmp_path: Path, is_protected: bool) -> None:
    workers = [
        Child("tests.chaos.worker", RH_WORKER_PORT="{port}", RH_WORKER_DRAIN_WAIT_S="0.5", ENVIRONMENT="test")
        for _ in range(3)
    ]
    config = route("work", "worker") + policy("worker")
    async with standing(tmp_path, {"worker": workers}, config) as rig:
        answers = rig.caller.answers

        def list_all_but(left_out: Child | None) -> None:
            fleet = [worker.address for worker in workers if worker is not left_out]
            write_endpoints(tmp_path / "endpoints.json", {"worker": fleet})

        # POST, so that none can be repeated in secret.
        async with rig.caller.steadily(["/work"], per_s=100, method="POST"):
            for worker in workers:
                await came(answers, "/work", 30)
                if is_protected:
                    list_all_but(worker)
                    assert await worker.stop(signal.SIGTERM) == 0
                else:
                    await worker.stop(signal.SIGKILL)
                await worker.start()
                list_all_but(None)
            await came(answers, "/work", 30)
    if is_protected:
        assert set(answers.statuses) == {200}
    else:
        assert answers.statuses[502] >= 1


# The store of the rate limits goes away.

QUOTA = 200


@contextlib.contextmanager
def valkey_in(folder: Path):
    server = RedisProcess(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def is_counted(valkey: RedisProcess) -> bool:
    async with Redis.from_url(valkey.url) as redis:
        return bool(await redis.keys(f"{KEY_PREFIX}*"))


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected"])
async def test_lost_store_of_limits_refuses_nobody_and_is_used_again(tmp_path: Path, is_protected: bool) -> None:
    store_down = "open" if is_protected else "closed"
    limit = f"""
[[limits]]
name = "everyone"
by = "address"
quota = {QUOTA}
window_s = 3600
store_down = "{store_down}"
"""
    config = limit + route("open", more='limits = ["everyone"]')
    with valkey_in(tmp_path) as valkey:
        async with standing(tmp_path, {"open": [Service()]}, config, REDIS_URL=valkey.url) as rig:
            answers = rig.caller.answers
            async with rig.caller.steadily(["/open"], per_s=200):
                await came(answers, "/open", 40)
                assert await is_counted(valkey)
                valkey.kill()
                if not is_protected:
                    await until(lambda: answers.statuses[200] < len(answers) - 20, "calls refused")
                    return
                # With a store these would be more than there are.
                await came(answers, "/open", 2 * QUOTA)
                assert set(answers.statuses) == {200}
                assert all(answer.message and answer.message.get("ratelimit") for answer in answers.all)
                valkey.start()
                # It is told what was spent meanwhile, so nothing is left.
                await came(answers, "/open", 50, status=429)
                assert await is_counted(valkey)
    assert set(answers.statuses) == {200, 429}
