"""Argon2Passwords: right and wrong, parameters, and the bound on waiting work."""

import asyncio
import os
import threading
from collections.abc import Iterator

import bcrypt
import pytest

from services.users.adapters.passwords import HASHING_NICE, Argon2Passwords
from shared.errors import Unavailable


@pytest.fixture
def hasher() -> Iterator[Argon2Passwords]:
    found = Argon2Passwords(memory_kib=8, passes=1)
    yield found
    found.close()


async def test_a_password_fits_its_own_hash_only(hasher):
    password_hash = await hasher.hash("correct horse")

    assert await hasher.verify("correct horse", password_hash)
    assert not await hasher.verify("correct hors", password_hash)
    assert not await hasher.verify("", password_hash)
    assert not await hasher.verify("correct horse", "no hash at all")
    assert password_hash != await hasher.hash("correct horse")


async def test_nothing_fits_the_decoy(hasher):
    assert not await hasher.verify("correct horse", hasher.decoy)
    assert hasher.decoy.split("$")[:4] == (await hasher.hash("x")).split("$")[:4]


async def test_the_default_is_the_agreed_profile():
    hasher = Argon2Passwords()
    password_hash = await hasher.hash("correct horse")
    hasher.close()

    assert password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


async def test_a_hash_of_other_parameters_is_outdated_and_still_fits(hasher):
    stronger = Argon2Passwords(memory_kib=16, passes=1)
    old = await hasher.hash("correct horse")

    assert not hasher.is_outdated(old)
    assert stronger.is_outdated(old)
    assert await stronger.verify("correct horse", old)
    stronger.close()


async def test_work_over_the_queue_is_refused_at_once_and_places_come_back():
    hasher = Argon2Passwords(memory_kib=8, passes=1, threads=1, queue_max=2)
    gate = threading.Event()
    hasher._pool.submit(gate.wait)

    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(hasher.hash("x")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as caught:
            await hasher.hash("x")
        gate.set()

    assert caught.value.headers["Retry-After"] == "1"
    assert len({task.result() for task in waiting}) == 3
    assert await hasher.verify("x", await hasher.hash("x"))
    hasher.close()


async def test_a_caller_who_goes_away_gives_its_place_back():
    hasher = Argon2Passwords(memory_kib=8, passes=1, threads=1, queue_max=1)
    gate = threading.Event()
    hasher._pool.submit(gate.wait)
    for _ in range(5):
        task = asyncio.get_running_loop().create_task(hasher.hash("x"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    gate.set()

    assert await asyncio.gather(hasher.hash("x"), hasher.hash("y"))
    hasher.close()


async def test_the_loop_goes_on_while_passwords_are_hashed():
    hasher = Argon2Passwords(memory_kib=19_456, passes=2, threads=1)
    turns = 0
    async with asyncio.TaskGroup() as group:
        task = group.create_task(hasher.hash("correct horse"))
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
    hasher.close()

    assert turns > 10


@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$"])
async def test_a_bcrypt_hash_from_elsewhere_is_verified_and_is_outdated(hasher, prefix):
    made = bcrypt.hashpw(b"correct horse", bcrypt.gensalt(4)).decode()
    password_hash = prefix + made[4:]

    assert await hasher.verify("correct horse", password_hash)
    assert not await hasher.verify("correct hors", password_hash)
    assert hasher.is_outdated(password_hash)


async def test_bcrypt_reads_72_bytes_as_those_who_made_the_hash_did(hasher):
    long = "ä" * 40
    password_hash = bcrypt.hashpw(long.encode()[:72], bcrypt.gensalt(4)).decode()

    assert await hasher.verify(long, password_hash)


@pytest.mark.parametrize("wrong", ["$2b$", "$2b$04$short", "$2b$31$" + "a" * 53, "$2b$xx$" + "a" * 53])
async def test_a_broken_or_endless_bcrypt_hash_fits_nothing(hasher, wrong):
    assert not await hasher.verify("correct horse", wrong)


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="threads have priorities of their own on Linux only")
async def test_hashing_threads_let_the_event_loop_go_first(hasher):
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    other = await hasher._run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    assert other == min(19, max(own, HASHING_NICE))
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
