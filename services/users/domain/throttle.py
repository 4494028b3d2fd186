"""The limit on failed log-ins of one client address, counted in the cache so that all replicas share it."""

import ipaddress

import structlog

from shared.cache.base import Cache, CacheUnavailable
from shared.errors import TooManyRequests


class FailedLogins:
    """Without the cache there is no limit, but log-ins go on: a degradation, logged once when it begins."""

    def __init__(self, cache: Cache, *, failures_max: int, window_s: float) -> None:
        self._cache = cache
        self._failures_max = failures_max
        self._window_s = window_s
        self._is_away = False
        self._log = structlog.get_logger()

    async def check(self, address: str) -> None:
        """Raise TooManyRequests while the address has failed too often."""
        try:
            left_s = await self._cache.ttl_s(_key("blocked", address))
        except CacheUnavailable:
            self._note_away()
            return
        self._is_away = False
        if left_s > 0:
            raise TooManyRequests(
                "too many failed log-ins from this address", retry_after_s=left_s, code="too_many_failed_logins"
            )

    async def count(self, address: str) -> None:
        """Count a failure; the one that reaches the limit blocks the address for the rest of the window."""
        key = _key("failed", address)
        try:
            failures = await self._cache.count(key, ttl_s=self._window_s)
            if failures >= self._failures_max:
                left_s = await self._cache.ttl_s(key)
                await self._cache.add(_key("blocked", address), b"1", ttl_s=max(1.0, left_s))
        except CacheUnavailable:
            self._note_away()

    def _note_away(self) -> None:
        if not self._is_away:
            self._log.warning("failed_logins_not_limited", reason="the cache is away")
        self._is_away = True


def _key(kind: str, address: str) -> str:
    return f"users:logins:{kind}:{address}"


def client_address(forwarded_for: str, peer: str) -> str:
    """Return whom a log-in is counted for: the first address the gateway forwards, else the peer; of IPv6 the /64.

    One household owns a whole /64, so counting single IPv6 addresses would limit nobody.
    """
    for text in (forwarded_for.partition(",")[0].strip(), peer):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return str(address.ipv4_mapped)
            return str(ipaddress.ip_network((int(address), 64), strict=False).network_address)
        return str(address)
    return "unknown"
