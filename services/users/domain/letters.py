"""Letters: one-time tokens with the mails that carry them, bounded, so that nobody can flood an address by way of us."""

import hashlib
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from services.users.domain.counters import Counters
from services.users.domain.ports import Seal, Tally
from services.users.model.records import Letter, Mail, OneTimeToken, Purpose, User
from shared.errors import Unavailable
from shared.ids import new_id

TOKEN_BYTES = 32
LASTS = MappingProxyType({"verify": timedelta(hours=24), "reset": timedelta(hours=1)})
WINDOW_S = 3600.0
NOT_SET_UP_RETRY_S = 60.0


class Letters:
    """`per_hour_max` mails of a kind go to an account, and as many to an address.

    `posted()` is called after a letter was stored, to wake the sender; None where nobody sends, and then none is written at all.
    """

    def __init__(
        self, seal: Seal, counters: Counters, *, tally: Tally, per_hour_max: int, posted: Callable[[], None] | None
    ) -> None:
        self._seal = seal
        self._counters = counters
        self._tally = tally
        self._per_hour_max = per_hour_max
        self._posted = posted

    def require_set_up(self) -> None:
        """Raise Unavailable where no mail can be sent."""
        if self._posted is None:
            raise Unavailable(
                "mail is not set up: who runs this service has not told it where to send mails",
                retry_after_s=NOT_SET_UP_RETRY_S,
                code="mail_not_set_up",
            )

    async def for_new_address(self, user: User) -> Letter | None:
        """Return what asks a user to verify an address that is new; None where no mail can be sent, or too many were.

        Counted apart from what the user asks for itself: else whoever keeps trying to take an address would silence its owner.
        """
        if self._posted is None or not await self.allows("new-address", user.email, user.id):
            return None
        return self.write("verify", user.id, user.email)

    def posted(self) -> None:
        """Tell the sender of a stored letter."""
        if self._posted is not None:
            self._posted()

    async def allows(self, kind: str, *receivers: str) -> bool:
        """Count one more mail to each receiver, an account's id or an address; return False when it is too many for one."""
        counts = [await self._counters.count(_key(kind, receiver), ttl_s=WINDOW_S) for receiver in receivers]
        is_allowed = max(counts) <= self._per_hour_max
        if not is_allowed:
            self._tally.mail_limited()
        return is_allowed

    def write(self, purpose: Purpose, user_id: str, email: str) -> Letter:
        """Return a new token and its mail."""
        text = secrets.token_urlsafe(TOKEN_BYTES)
        now = datetime.now(UTC)
        expires_at = now + LASTS[purpose]
        mail_id = new_id()
        sealed = self._seal.close(text, bound_to=binding(mail_id, purpose, email))
        return Letter(
            OneTimeToken(hash_of(text), purpose, user_id, email, now, expires_at),
            Mail(mail_id, email, purpose, sealed, now, expires_at, next_try_at=now),
        )


def hash_of(token: str) -> bytes:
    # A plain hash suffices: the token is random, there is nothing to guess.
    return hashlib.sha256(token.encode(errors="replace")).digest()


def binding(mail_id: str, purpose: Purpose, recipient: str) -> str:
    """Return what a sealed token is bound to, so that one who writes to the store cannot have it sent elsewhere."""
    return f"{mail_id} {purpose} {recipient}"


def _key(kind: str, receiver: str) -> str:
    # Hashed: it may be an address.
    return f"users:mails:{kind}:{hashlib.sha256(receiver.encode()).hexdigest()[:32]}"
