"""What users does for its clients while PostgreSQL, NATS and Redis are killed, hang and come back, and its own relay dies.

Each fault is also shown with its protection switched off: there what the protection is for really happens.
"""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from statistics import quantiles

import httpx2
import pytest

from tests.chaos.users_rig import CREATED, UPDATED, UsersRig, standing_users

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

DOWN_S = 2.0
DEADLINE_MS = 3000
ROOM_S = 1.0
"""For a machine that is busy with other things."""


async def until_more(seen_at: list[float], count: int, timeout_s: float = 15.0) -> None:
    wanted = len(seen_at) + count
    async with asyncio.timeout(timeout_s):
        while len(seen_at) < wanted:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def reading(rig: UsersRig, path: str, headers: dict[str, str]):
    """Read a record all the time meanwhile; the answers."""
    answers: list[httpx2.Response] = []
    is_over = asyncio.Event()

    async def read() -> None:
        while not is_over.is_set():
            answers.append(await rig.client.get(rig.url() + path, headers=headers))
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        try:
            yield answers
        finally:
            is_over.set()


async def commit_without_sync(rig: UsersRig) -> None:
    """Let PostgreSQL acknowledge what is not on its disk yet."""
    await rig.database.rows("ALTER ROLE CURRENT_USER SET synchronous_commit = off")
    # Else it may have synced just before it is killed.
    await rig.database.rows("ALTER SYSTEM SET wal_writer_delay = '10s'")
    await rig.database.rows("SELECT pg_reload_conf()")
    await rig.database.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    async with asyncio.timeout(15):
        while (await rig.register()).status_code != 201:
            await asyncio.sleep(0.05)


def told(events: list[dict]) -> list[str]:
    return [event["data"]["id"] for event in events]


# PostgreSQL.


@pytest.mark.parametrize(
    "protection", ["protected", "unprotected: no stale answers", "unprotected: commits not synced"]
)
async def test_killed_postgres_loses_nothing_and_known_records_are_read_on(tmp_path: Path, protection: str) -> None:
    stale_max_s = "0" if protection == "unprotected: no stale answers" else "60"
    async with standing_users(
        tmp_path, replicas=2, RH_USERS_CACHE_TTL_S="0.2", RH_USERS_STALE_MAX_S=stale_max_s
    ) as rig:
        if protection == "unprotected: commits not synced":
            await commit_without_sync(rig)
        known = (await rig.register()).json()
        headers = await rig.bearer(known["username"])
        insists = protection == "protected"
        async with (
            rig.writing(insists=insists) as seen,
            reading(rig, f"/users/{known['id']}", headers) as answers,
        ):
            await until_more(seen.succeeded_at, 200)
            await rig.database.kill()
            await asyncio.sleep(DOWN_S)  # the length of the outage
            await rig.database.start()
            ready_at = time.monotonic()
            await until_more(seen.succeeded_at, 200)
            # The store is tried once a second while something stale is there to answer with.
            async with asyncio.timeout(10):
                while protection == "protected" and "age" in answers[-1].headers:
                    await asyncio.sleep(0.02)
        first_s = min(moment for moment in seen.succeeded_at if moment > ready_at) - ready_at
        drained_s = await rig.until_drained()
        stored = {str(row["id"]) for row in await rig.database.rows("SELECT id FROM users")}
        on_bus = told(await rig.events(CREATED))

    lost = set(seen.acknowledged) - stored
    stale = [answer for answer in answers if "age" in answer.headers]
    print(
        f"{protection}: {len(seen.acknowledged)} acknowledged, {len(lost)} lost, {len(stored - set(seen.acknowledged))} stored "
        f"without an acknowledgement, first success {first_s * 1000:.0f} ms after ready, backlog gone after {drained_s:.2f} s, "
        f"{len(answers)} reads, {len(stale)} of them stale"
    )
    if protection == "unprotected: commits not synced":
        assert lost
        return
    assert lost == set()
    assert set(seen.statuses) <= {201, 503, *([409] if insists else [])}
    assert first_s < 5.0
    assert len(on_bus) == len(set(on_bus))
    assert set(on_bus) == stored
    statuses = {answer.status_code for answer in answers}
    if protection == "protected":
        # With a key, asked again until it is there: none twice, none that nobody was told of but the first admin and the reader.
        assert len(stored) == len(seen.acknowledged) + 2 == len(set(seen.acknowledged)) + 2
        assert statuses == {200}
        assert stale
        assert all(answer.headers["cache-status"].startswith("users; hit") for answer in stale)
    else:
        assert statuses == {200, 503}
        assert not stale


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected: no time limits"])
async def test_stopped_postgres_is_503_in_time_and_the_pool_is_whole_afterwards(
    tmp_path: Path, is_protected: bool
) -> None:
    async with standing_users(tmp_path, off="" if is_protected else "store-timeouts") as rig:
        known = (await rig.register()).json()
        headers = await rig.bearer(known["username"])
        path = f"{rig.url()}/users/{known['id']}"
        limited = {"X-Request-Timeout-Ms": str(DEADLINE_MS)}
        uncached = {**headers, "Cache-Control": "no-cache"}

        async def one(number: int) -> tuple[int, bool, float]:
            began_at = time.monotonic()
            if number % 2:
                answer = await rig.register(**limited)
            else:
                answer = await rig.client.get(path, headers={**uncached, **limited})
            return answer.status_code, "retry-after" in answer.headers, time.monotonic() - began_at

        rig.database.signal(signal.SIGSTOP)
        try:
            hung = await asyncio.gather(*(one(number) for number in range(40)))
            cached = await rig.client.get(path, headers=headers)
        finally:
            rig.database.signal(signal.SIGCONT)
        began_at = time.monotonic()
        async with asyncio.timeout(15):
            while (await rig.client.get(path, headers=uncached)).status_code != 200:
                await asyncio.sleep(0.02)
        healed_s = time.monotonic() - began_at
        after = await asyncio.gather(*(rig.client.get(path, headers=uncached) for _ in range(40)))

    print(
        f"answers while it stood still: {sorted({found[:2] for found in hung})}, healed after {healed_s * 1000:.0f} ms"
    )
    slowest_s = max(found[2] for found in hung)
    if is_protected:
        assert cached.status_code == 200
        assert {found[:2] for found in hung} == {(503, True)}
        assert slowest_s < DEADLINE_MS / 1000
        assert {answer.status_code for answer in after} == {200}
    else:
        assert 504 in {found[0] for found in hung}
        assert slowest_s > DEADLINE_MS / 1000


# NATS and the relay.


async def test_killed_nats_fails_no_write_and_the_backlog_follows_in_order(tmp_path: Path) -> None:
    async with standing_users(tmp_path, replicas=2) as rig:
        known = (await rig.register()).json()
        path, headers = f"{rig.url()}/users/{known['id']}", await rig.bearer(known["username"])
        async with rig.writing() as seen:
            await until_more(seen.succeeded_at, 100)
            await asyncio.to_thread(rig.nats.kill)
            for n in range(20):
                changed = await rig.client.patch(path, json={"full_name": f"name {n}"}, headers=headers)
                assert changed.status_code == 200
                # What was written is read, also while nobody can be told of it.
                assert (await rig.client.get(path, headers=headers)).json()["full_name"] == f"name {n}"
            await until_more(seen.succeeded_at, 500)
            waiting = (await rig.database.rows("SELECT count(*) AS waiting FROM outbox"))[0]["waiting"]
            await asyncio.to_thread(rig.nats.start)
        drained_s = await rig.until_drained()
        stored = {str(row["id"]) for row in await rig.database.rows("SELECT id FROM users")}
        on_bus = told(await rig.events(CREATED))
        versions = [event["data"]["version"] for event in await rig.events(UPDATED)]

    print(f"{len(seen.acknowledged)} writes, {waiting} events waited, gone {drained_s:.2f} s after the writers")
    assert set(seen.statuses) == {201}
    assert waiting >= 500
    assert len(on_bus) == len(set(on_bus))
    assert set(on_bus) == stored
    assert versions == list(range(2, 22))


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected: no message ids"])
async def test_relay_killed_between_publish_and_delete_sends_nothing_twice(tmp_path: Path, is_protected: bool) -> None:
    off = "dies" if is_protected else "dies,message-ids"
    async with standing_users(tmp_path, replicas=1, off=off) as rig:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15), rig.writing() as seen:
                while not (tmp_path / "died").exists():
                    await asyncio.sleep(0.02)
        # Under way twice: on the bus, and still in the outbox.
        died_with = set((tmp_path / "died").read_text().split())
        left = {str(row["id"]) for row in await rig.database.rows("SELECT id FROM outbox")}
        await rig.replicas[0].stop()
        await rig.replicas[0].start()
        await rig.until_drained()
        stored = {str(row["id"]) for row in await rig.database.rows("SELECT id FROM users")}
        events = await rig.events(CREATED)

    print(
        f"died with {len(died_with)} events on the bus and in the outbox; {len(events)} events of {len(stored)} users"
    )
    assert died_with <= left
    assert set(seen.acknowledged) <= stored
    assert set(told(events)) == stored
    if is_protected:
        assert len(events) == len(stored)
    else:
        assert len(events) == len(stored) + len(died_with)


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected: nobody takes over"])
async def test_killed_leader_of_the_relay_is_followed_by_another(tmp_path: Path, is_protected: bool) -> None:
    async with standing_users(tmp_path, replicas=2, off="" if is_protected else "take-over") as rig:
        await rig.register()
        await rig.until_drained()
        [leader] = await rig.database.rows(
            "SELECT application_name AS name FROM pg_stat_activity JOIN pg_locks USING (pid) "
            "WHERE locktype = 'advisory' AND granted AND application_name LIKE '%-relay'"
        )
        place = [replica.name for replica in rig.replicas].index(leader["name"].removesuffix("-relay"))
        await rig.replicas[place].stop()
        killed_at = time.monotonic()
        assert (await rig.register(1 - place)).status_code == 201
        if is_protected:
            await rig.until_drained(timeout_s=10)
            print(f"the other relay had sent all {time.monotonic() - killed_at:.2f} s after the leader was killed")
        else:
            with pytest.raises(TimeoutError):
                await rig.until_drained(timeout_s=5)
            return
        stored = {str(row["id"]) for row in await rig.database.rows("SELECT id FROM users")}
        on_bus = told(await rig.events(CREATED))
    assert sorted(on_bus) == sorted(stored)


# Redis.


@pytest.mark.parametrize("fault", ["killed", "hung", "unprotected: hung, no bounds"])
async def test_redis_that_is_away_fails_nothing_and_costs_next_to_nothing(tmp_path: Path, fault: str) -> None:
    off = "cache-bounds" if fault.startswith("unprotected") else ""
    count = 3 if off else 1000
    async with standing_users(tmp_path, off=off, RH_USERS_CACHE_SHARED="1") as rig:
        known, ids, admin = (await rig.register()).json(), await rig.fill(2 * count), await rig.admin()

        async def reads(ids: list[str]) -> tuple[set[int], list[float]]:
            """Read each for the first time: not from memory, but by Redis and PostgreSQL."""
            statuses, times = set(), []
            for user_id in ids:
                began_at = time.perf_counter()
                statuses.add((await rig.client.get(f"{rig.url()}/users/{user_id}", headers=admin)).status_code)
                times.append(time.perf_counter() - began_at)
            return statuses, times

        _, with_redis = await reads(ids[:count])
        if fault == "killed":
            rig.redis.kill()
        else:
            rig.redis.pause()
        statuses, without = await reads(ids[count:])
        form = {"username": known["username"], "password": "wrong Pferd Batterie 9"}
        login = (await rig.client.post(f"{rig.url()}/auth/token", data=form)).status_code
        written = (await rig.register()).status_code
        if fault != "killed":
            rig.redis.resume()

    before_s, after_s = quantiles(with_redis, n=100)[98], quantiles(without, n=100)[98]
    print(f"{fault}: read p99 {before_s * 1000:.2f} -> {after_s * 1000:.2f} ms, slowest {max(without) * 1000:.0f} ms")
    assert statuses == {200}
    assert (login, written) == (401, 201)
    if off:
        assert max(without) > 1.0
    else:
        assert max(without) < 0.5 + ROOM_S


# What was told before it was true.


@pytest.mark.parametrize("is_protected", [True, False], ids=["protected", "unprotected: believes without NATS"])
async def test_deleted_user_is_shown_by_no_replica_for_longer_than_a_second(tmp_path: Path, is_protected: bool) -> None:
    async with standing_users(tmp_path, replicas=2, off="" if is_protected else "vouching") as rig:
        admin = await rig.admin()
        worst_s = 0.0
        for nats_is_down in (False, True):
            user = (await rig.register()).json()
            path, headers = f"/users/{user['id']}", await rig.bearer(user["username"])
            assert (await rig.client.get(rig.url(1) + path, headers=admin)).status_code == 200
            if nats_is_down:
                await asyncio.to_thread(rig.nats.kill)
            assert (await rig.client.delete(rig.url(0) + path, headers=headers)).status_code == 204
            deleted_at = time.monotonic()
            assert (await rig.client.get(rig.url(0) + path, headers=admin)).status_code == 404
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(4):
                    while (await rig.client.get(rig.url(1) + path, headers=admin)).status_code != 404:
                        await asyncio.sleep(0.005)
            worst_s = max(worst_s, time.monotonic() - deleted_at)
            print(f"NATS {'down' if nats_is_down else 'up'}: gone on the other replica after {worst_s * 1000:.0f} ms")
    if is_protected:
        assert worst_s < 1.0 + ROOM_S / 2
    else:
        assert worst_s > 3.0


def test_the_tests_leave_nothing_behind() -> None:
    """Every server here ends with its block; a process that outlived one would carry its mark."""
    marked = f"chaos-{os.getpid()}-"
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                assert marked not in (entry / "environ").read_bytes().decode("latin-1") or entry.name == str(
                    os.getpid()
                )
