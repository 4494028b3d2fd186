"""FailedLogins and whom a log-in is counted for."""

import pytest
from structlog.testing import capture_logs

from services.users.domain.counters import Counters
from services.users.domain.throttle import FailedLogins, client_address
from shared.cache.memory import MemoryCache
from shared.errors import TooManyRequests


async def test_the_last_allowed_failure_blocks_the_address_for_the_window():
    failed = FailedLogins(Counters(MemoryCache()), failures_max=100, window_s=600)
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
    replicas = [FailedLogins(Counters(cache), failures_max=4, window_s=60) for _ in range(2)]
    for replica in replicas * 2:
        await replica.count("192.0.2.1")

    for replica in replicas:
        with pytest.raises(TooManyRequests):
            await replica.check("192.0.2.1")


async def test_without_the_cache_a_replica_counts_alone_which_is_said_once():
    cache = MemoryCache()
    cache.available = False
    failed = FailedLogins(Counters(cache), failures_max=2, window_s=60)
    with capture_logs() as lines:
        for _ in range(2):
            await failed.check("192.0.2.1")
            await failed.count("192.0.2.1")
        with pytest.raises(TooManyRequests):
            await failed.check("192.0.2.1")
    assert [line["event"] for line in lines] == ["logins_counted_alone"]

    cache.available = True
    with pytest.raises(TooManyRequests):
        await failed.check("192.0.2.1")
    await failed.check("192.0.2.2")


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
        ("1" * 30_000, "192.0.2.1", "192.0.2.1"),
    ],
)
def test_a_login_is_counted_for(forwarded_for, peer, expected):
    assert client_address(forwarded_for, peer) == expected
