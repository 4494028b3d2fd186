"""Accounts: an address is verified, or a password set anew, by whoever reads the mail of that address."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from services.users.domain.audit import differences, entry_of
from services.users.domain.events import event_of
from services.users.domain.letters import Letters, hash_of
from services.users.domain.lockout import AccountLocks
from services.users.domain.ports import OneTimeTokens, PasswordHasher, UserRepository, VersionChanged
from services.users.domain.sessions import Endings
from services.users.domain.strength import PasswordStrength
from services.users.domain.users import WRITE_TRIES_MAX
from services.users.model.records import Actor, Letter, Purpose, User
from shared.errors import FieldError, InvalidInput, NotFound, Unavailable
from shared.ids import new_id


class AccountService:
    """`announce()` is called after a stored change, to wake the relay."""

    def __init__(
        self,
        users: UserRepository,
        tokens: OneTimeTokens,
        letters: Letters,
        passwords: PasswordHasher,
        *,
        strength: PasswordStrength,
        locks: AccountLocks,
        endings: Endings,
        announce: Callable[[], None],
    ) -> None:
        self._users = users
        self._tokens = tokens
        self._letters = letters
        self._passwords = passwords
        self._strength = strength
        self._locks = locks
        self._endings = endings
        self._announce = announce

    async def request_verification(self, actor: Actor) -> None:
        """Send a mail that verifies the own address; none where it is verified already, or too many were sent.

        Raises NotFound, Unavailable.
        """
        self._letters.require_set_up()
        user = await self._users.get(actor.user_id)
        if user.email_verified_at is None and await self._letters.allows("verify", user.id):
            letter = self._letters.write("verify", user.id, user.email)
            await self._issue(letter, "user.verification_requested", actor=actor, user_id=user.id)

    async def forgot(self, email: str) -> None:
        """Send a mail that resets the password of whose address this is.

        Whether it is anybody's can be seen in nothing: an unknown address takes the same steps and the same statement, which writes
        a line of the audit log in both cases. Raises Unavailable.
        """
        self._letters.require_set_up()
        if not await self._letters.allows("reset", email):
            return
        known = await self._users.find_login(email)
        letter = self._letters.write("reset", known.user.id if known else new_id(), email)
        await self._issue(letter, "user.reset_requested", user_id=known.user.id if known else "")

    async def _issue(self, letter: Letter, action: str, *, user_id: str, actor: Actor | None = None) -> None:
        await self._tokens.issue(letter, audit=entry_of(action, user_id=user_id, actor=actor))
        self._letters.posted()

    async def verify(self, token: str) -> None:
        """Mark the address that a token was sent to as verified. Raises InvalidInput, Unavailable."""
        for _ in range(WRITE_TRIES_MAX):
            user = await self._holder(token, "verify")
            now = datetime.now(UTC)
            changed = replace(user, email_verified_at=now, version=user.version + 1, updated_at=now)
            before, after = differences(user, changed, ("email",))
            try:
                await self._users.replace(
                    changed,
                    event_of(changed, "updated", changed=["email_verified"]),
                    expected_version=user.version,
                    audit=entry_of("user.email_verified", user_id=user.id, before=before, after=after),
                    spent=hash_of(token),
                )
            except VersionChanged:
                continue
            self._announce()
            return
        raise _contended()

    async def reset(self, token: str, password: str) -> None:
        """Set the password of whom a token was sent to, ending all its sessions and its lock. Raises InvalidInput, Unavailable."""
        user = await self._holder(token, "reset")
        self._strength.check(password, username=user.username, email=user.email)
        password_hash = await self._passwords.hash(password)
        for _ in range(WRITE_TRIES_MAX):
            user = await self._holder(token, "reset")
            changed = replace(user, version=user.version + 1, updated_at=datetime.now(UTC))
            before, after = differences(user, changed, ("password",))
            ended = self._endings.event(user.id, "password_reset")
            try:
                await self._users.replace(
                    changed,
                    event_of(changed, "updated", changed=["password"]),
                    expected_version=user.version,
                    password_hash=password_hash,
                    ended=ended,
                    audit=entry_of("user.password_reset", user_id=user.id, before=before, after=after),
                    spent=hash_of(token),
                )
            except VersionChanged:
                continue
            self._announce()
            await self._locks.reset(user.id)
            await self._endings.tell(ended)
            return
        raise _contended()

    async def _holder(self, token: str, purpose: Purpose) -> User:
        """Return whom a living token of this purpose was sent to. Raises InvalidInput, Unavailable."""
        found = await self._tokens.find(hash_of(token), now=datetime.now(UTC))
        if found is None or found.purpose != purpose:
            raise _refused()
        try:
            user = await self._users.get(found.user_id)
        except NotFound:
            raise _refused() from None
        if user.email != found.email:
            # It was sent to an address that is the user's no longer.
            raise _refused()
        return user


def _refused() -> InvalidInput:
    message = "is not good, or not any more: ask for a new mail"
    return InvalidInput(
        f"body.token: {message}", code="token_refused", errors=[FieldError("body.token", message, "refused")]
    )


def _contended() -> Unavailable:
    return Unavailable("this user is being changed by too many at once")
