"""The limit on failed log-ins of one client address, counted in the cache so that all replicas share it."""

import ipaddress
from functools import lru_cache

from services.users.domain.counters import Counters
from shared.errors import TooManyRequests

ADDRESS_CHARS_MAX = 64
"""The longest address has 45, and may name a zone."""


class FailedLogins:
    """Past `failures_max` in `window_s` an address is refused for the rest of the window."""

    def __init__(self, counters: Counters, *, failures_max: int, window_s: float) -> None:
        self._counters = counters
        self._failures_max = failures_max
        self._window_s = window_s

    async def check(self, address: str) -> None:
        """Raise TooManyRequests while the address has failed too often."""
        left_s = await self._counters.left_s(_key("blocked", address))
        if left_s > 0:
            raise TooManyRequests(
                "too many failed log-ins from this address", retry_after_s=left_s, code="too_many_failed_logins"
            )

    async def count(self, address: str) -> None:
        """Count a failure; the one that reaches the limit blocks the address for the rest of the window."""
        key = _key("failed", address)
        if await self._counters.count(key, ttl_s=self._window_s) >= self._failures_max:
            await self._counters.mark(_key("blocked", address), ttl_s=max(1.0, await self._counters.left_s(key)))


def _key(kind: str, address: str) -> str:
    return f"users:logins:address-{kind}:{address}"


def client_address(forwarded_for: str, peer: str) -> str:
    """Return whom a log-in is counted for: the first address the gateway forwards, else the peer; of IPv6 the /64.

    One household owns a whole /64, so counting single IPv6 addresses would limit nobody.
    """
    for text in (forwarded_for.partition(",")[0].strip(), peer):
        if text and len(text) <= ADDRESS_CHARS_MAX and (found := _counted_address(text)):
            return found
    return "unknown"


@lru_cache(maxsize=1024)
def _counted_address(text: str) -> str:
    """Return an address as it is counted, "" for a text that is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), 64), strict=False).network_address)
    return str(address)
