"""AccountLocks: how long an account is locked, and what ends it."""

import pytest

from services.users.domain.counters import Counters
from services.users.domain.lockout import AccountLocks
from shared.cache.memory import MemoryCache


@pytest.fixture
def cache():
    return MemoryCache()


@pytest.fixture
def locks(cache):
    return AccountLocks(Counters(cache), failures_max=3, lock_s=60, lock_max_s=200)


async def test_each_further_failure_doubles_the_lock_up_to_its_maximum(locks):
    assert [await locks.failed("a", is_locked=False) for _ in range(7)] == [0, 0, 60, 120, 200, 200, 200]


async def test_failures_of_a_locked_account_lengthen_nothing(locks):
    for _ in range(3):
        await locks.failed("a", is_locked=False)
    assert await locks.is_locked("a", "192.0.2.1")

    assert [await locks.failed("a", is_locked=True) for _ in range(50)] == [0] * 50
    assert await locks.failed("a", is_locked=False) == 120


async def test_other_accounts_are_not_locked(locks):
    for _ in range(3):
        await locks.failed("a", is_locked=False)

    assert not await locks.is_locked("b", "192.0.2.1")


async def test_a_new_password_by_mail_ends_the_lock(locks):
    for _ in range(3):
        await locks.failed("a", is_locked=False)
    await locks.reset("a")

    assert not await locks.is_locked("a", "192.0.2.1")
    assert await locks.failed("a", is_locked=False) == 0


async def test_replicas_lock_together(cache):
    replicas = [AccountLocks(Counters(cache), failures_max=4, lock_s=60, lock_max_s=60) for _ in range(2)]
    for replica in replicas * 2:
        await replica.failed("a", is_locked=False)

    assert all([await replica.is_locked("a", "") for replica in replicas])


async def test_a_lock_made_while_the_cache_was_away_holds_when_it_is_back(cache, locks):
    cache.available = False
    for _ in range(3):
        await locks.failed("a", is_locked=False)
    cache.available = True

    assert await locks.is_locked("a", "192.0.2.1")


async def test_what_was_typed_as_a_name_is_not_kept_in_the_cache(cache, locks):
    await locks.failed("my secret, typed into the wrong field", is_locked=False)
    await locks.failed("\ud800", is_locked=False)

    assert not any("secret" in key for key in cache.store._entries)
