"""The heap is trimmed once after a burst, not during it."""

import asyncio

from services.users.adapters.heap import HeapTrimmer
from services.users.adapters.passwords import Argon2Passwords


async def test_a_burst_is_trimmed_once_when_it_is_over() -> None:
    trims = 0
    trimmed = asyncio.Event()

    def trim() -> None:
        nonlocal trims
        trims += 1
        loop.call_soon_threadsafe(trimmed.set)

    loop = asyncio.get_running_loop()
    trimmer = HeapTrimmer(quiet_s=0.05, trim=trim)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(trimmer.run())
        for _ in range(20):
            trimmer.used()
            await asyncio.sleep(0.01)
            assert trims == 0
        await asyncio.wait_for(trimmed.wait(), 5)
        running.cancel()
    assert trims == 1


async def test_hashing_counts_as_use() -> None:
    uses: list[str] = []
    passwords = Argon2Passwords(memory_kib=64, passes=1, threads=1, on_use=lambda: uses.append("used"))
    await passwords.verify("x", await passwords.hash("x"))
    passwords.close()
    assert uses == ["used", "used"]
