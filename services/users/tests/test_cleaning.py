"""The cleaner: every job until nothing is left, whatever happens to another one."""

import asyncio

from services.users.domain.cleaning import BATCH, Cleaner
from shared.errors import Unavailable


async def test_each_job_runs_until_nothing_is_left():
    left, limits = {"a": 1200, "b": 1}, []

    def job(name):
        async def forget(limit):
            limits.append(limit)
            count = min(limit, left[name])
            left[name] -= count
            return count

        return forget

    await Cleaner({"a": job("a"), "b": job("b")}, every_s=1).clean()

    assert left == {"a": 0, "b": 0}
    assert set(limits) == {BATCH}


async def test_a_store_that_is_away_ends_neither_the_round_nor_the_cleaner():
    called = asyncio.Event()
    rounds = 0

    async def away(limit):
        nonlocal rounds
        rounds += 1
        raise Unavailable

    async def works(limit):
        if rounds >= 2:
            called.set()
        return 0

    task = asyncio.get_running_loop().create_task(Cleaner({"away": away, "works": works}, every_s=0.001).run())
    async with asyncio.timeout(5):
        await called.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
