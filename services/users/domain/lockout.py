"""The lock on an account that somebody guesses at: it answers as a wrong password does, and for ever longer.

Who knows only a name can lock its account, but never for more than `lock_max_s`, and not for an address that the account has been used
from lately; a new password by mail ends it.
"""

import hashlib

from services.users.domain.counters import Counters

COUNTED_S = 24 * 3600.0
"""Failures are forgotten after a day, or at a success."""
KNOWN_S = 30 * 24 * 3600.0


class AccountLocks:
    """`account` is a user's id, or the text that was tried where it belongs to nobody: the work is the same."""

    def __init__(self, counters: Counters, *, failures_max: int, lock_s: float, lock_max_s: float) -> None:
        self._counters = counters
        self._failures_max = failures_max
        self._lock_s = lock_s
        self._lock_max_s = lock_max_s

    async def is_locked(self, account: str, address: str) -> bool:
        """Tell whether a log-in must fail whatever its password is."""
        locked_s = await self._counters.left_s(_key("locked", account))
        known_s = await self._counters.left_s(_known(account, address))
        return locked_s > 0 and known_s <= 0

    async def failed(self, account: str, *, is_locked: bool) -> float:
        """Count a failure; return the seconds that the account is locked for from now, 0.0 where it is not by this one.

        The first lock comes with `failures_max` failures, each further one doubles it. Those of a locked account are counted
        apart: they lengthen nothing, or whoever goes on trying would lock it for ever.
        """
        failures = await self._counters.count(_key("late" if is_locked else "failed", account), ttl_s=COUNTED_S)
        if is_locked or failures < self._failures_max:
            return 0.0
        doubled = min(failures - self._failures_max, 20)
        locked_s = min(self._lock_s * 2**doubled, self._lock_max_s)
        await self._counters.mark(_key("locked", account), ttl_s=locked_s)
        return float(locked_s)

    async def succeeded(self, account: str, address: str) -> None:
        """Forget the failures and remember the address."""
        await self._counters.forget(_key("failed", account), _key("late", account), _key("locked", account))
        await self._counters.mark(_known(account, address), ttl_s=KNOWN_S)

    async def reset(self, account: str) -> None:
        """End a lock, its count too: whoever reads the account's mail has set a new password."""
        await self._counters.forget(_key("failed", account), _key("late", account), _key("locked", account))


def _key(kind: str, account: str) -> str:
    # Hashed: what was typed as a name may be a password, and of any length.
    return f"users:logins:{kind}:{hashlib.sha256(account.encode(errors='replace')).hexdigest()[:32]}"


def _known(account: str, address: str) -> str:
    return _key("known", f"{account} {address}")
