"""FailedLogins and whom a log-in is counted for."""

import pytest
from structlog.testing import capture_logs

from services.users.domain.throttle import FailedLogins, client_address
from shared.cache.base import CacheUnavailable
from shared.cache.memory import MemoryCache
from shared.errors import TooManyRequests


async def test_the_last_allowed_failure_blocks_the_address_for_the_window():
    failed = FailedLogins(MemoryCache(), failures_max=100, window_s=600)
    for _ in range(99):
        await failed.count("192.0.2.1")
    await failed.check("192.0.2.1")

    await failed.count("192.0.2.1")

    with pytest.raises(TooManyRequests) as caught:
        await failed.check("192.0.2.1")
    assert 590 <= int(caught.value.headers["Retry-After"]) <= 600
    await failed.check("192.0.2.2")


async def test_replicas_count_together():
    cache = MemoryCache()
    replicas = [FailedLogins(cache, failures_max=4, window_s=60) for _ in range(2)]
    for replica in replicas * 2:
        await replica.count("192.0.2.1")

    for replica in replicas:
        with pytest.raises(TooManyRequests):
            await replica.check("192.0.2.1")


class NoCache(MemoryCache):
    is_away = True

    async def ttl_s(self, key):
        if self.is_away:
            raise CacheUnavailable
        return await super().ttl_s(key)

    async def count(self, key, *, ttl_s):
        if self.is_away:
            raise CacheUnavailable
        return await super().count(key, ttl_s=ttl_s)


async def test_without_the_cache_nobody_is_refused_and_it_is_said_once():
    cache = NoCache()
    failed = FailedLogins(cache, failures_max=1, window_s=60)
    with capture_logs() as lines:
        for _ in range(5):
            await failed.check("192.0.2.1")
            await failed.count("192.0.2.1")
    assert [line["event"] for line in lines] == ["failed_logins_not_limited"]

    cache.is_away = False
    await failed.check("192.0.2.1")
    await failed.count("192.0.2.1")
    with pytest.raises(TooManyRequests):
        await failed.check("192.0.2.1")


@pytest.mark.parametrize(
    ("forwarded_for", "peer", "expected"),
    [
        ("192.0.2.7, 10.0.0.1", "127.0.0.1", "192.0.2.7"),
        ("192.0.2.7", "127.0.0.1", "192.0.2.7"),
        ("", "127.0.0.1", "127.0.0.1"),
        ("garbage", "127.0.0.1", "127.0.0.1"),
        ("x" * 100_000, "", "unknown"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::"),
        ("2001:db8:1:2::1", "", "2001:db8:1:2::"),
        ("::ffff:192.0.2.7", "", "192.0.2.7"),
    ],
)
def test_a_login_is_counted_for(forwarded_for, peer, expected):
    assert client_address(forwarded_for, peer) == expected
