"""Log-in: who gets a session, and what becomes of those who guess."""

import structlog

from services.users.domain.audit import entry_of
from services.users.domain.lockout import AccountLocks
from services.users.domain.ports import AuditLog, PasswordHasher, Tally, UserRepository
from services.users.domain.sessions import SessionService
from services.users.domain.throttle import FailedLogins
from services.users.model.records import Client, Credentials, Tokens
from services.users.model.text import LOGIN_CHARS_MAX, fold, normalise_password
from shared.errors import NotFound, TooManyRequests, Unauthorized, Unavailable


class AuthService:
    """Opens a session for whoever knows the password."""

    def __init__(
        self,
        *,
        users: UserRepository,
        sessions: SessionService,
        passwords: PasswordHasher,
        failed: FailedLogins,
        locks: AccountLocks,
        audit: AuditLog,
        tally: Tally,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._passwords = passwords
        self._failed = failed
        self._locks = locks
        self._audit = audit
        self._tally = tally
        self._log = structlog.get_logger()

    async def log_in(self, login: str, password: str, client: Client) -> Tokens:
        """Open a session for a username or e-mail address with its password.

        The answer and the work are the same for an unknown user, a wrong password and a locked account.
        Raises Unauthorized, TooManyRequests, Unavailable.
        """
        try:
            await self._failed.check(client.address)
        except TooManyRequests:
            self._tally.login("limited")
            raise
        readable = _readable_login(login)
        known = await self._users.find_login(readable)
        found = await self._verified(known, password)
        account = known.user.id if known is not None else readable
        # Asked after the hash, so that of many guesses at once those behind the failure that locks find the lock.
        is_locked = await self._locks.is_locked(account, client.address)
        if found is None or is_locked:
            await self._refused(account, client, user_id=known.user.id if known else "", is_locked=is_locked)
            raise _login_refused()
        await self._locks.succeeded(account, client.address)
        if self._passwords.is_outdated(found.password_hash):
            # Only now: a second hash would tell who tries a locked account that its password was right.
            await self._renew_hash(found, normalise_password(password))
        try:
            tokens = await self._sessions.open(found.user, client)
        except NotFound:
            # Deleted between the look-up and here.
            raise _login_refused() from None
        self._tally.login("ok")
        return tokens

    async def _refused(self, account: str, client: Client, *, user_id: str, is_locked: bool) -> None:
        await self._failed.count(client.address)
        locked_s = await self._locks.failed(account, is_locked=is_locked)
        self._tally.login("locked" if is_locked else "refused")
        if locked_s and user_id:
            self._log.warning("account_locked", user_id=user_id, locked_s=locked_s)
            await self._note_lock(user_id, locked_s)

    async def _note_lock(self, user_id: str, locked_s: float) -> None:
        try:
            await self._audit.add(entry_of("login.locked", user_id=user_id, after={"locked_s": locked_s}))
        except Unavailable as error:
            # The lock itself holds, and the log has its line.
            self._log.warning("audit_not_written", action="login.locked", reason=str(error))

    async def _verified(self, found: Credentials | None, password: str) -> Credentials | None:
        """Return whom the password fits; one hash, whatever comes."""
        try:
            readable = normalise_password(password)
        except ValueError:
            # It was never accepted as a password, so it fits nobody; the decoy keeps the work the same.
            readable, found = "unreadable", None
        fits = await self._passwords.verify(readable, found.password_hash if found else self._passwords.decoy)
        return found if fits else None

    async def _renew_hash(self, found: Credentials, password: str) -> None:
        try:
            new_hash = await self._passwords.hash(password)
            await self._users.rehash(found.user.id, old_hash=found.password_hash, new_hash=new_hash)
        except Unavailable as error:
            # The next log-in tries again; this one need not fail for it.
            self._log.warning("password_not_rehashed", reason=str(error))


def _readable_login(login: str) -> str:
    """Return a login as names and addresses are stored; what cannot be one becomes a text that nobody has."""
    found = fold(login.strip()) if len(login) <= LOGIN_CHARS_MAX else ""
    return "" if "\x00" in found else found


def _login_refused() -> Unauthorized:
    return Unauthorized("username or password is wrong", code="invalid_credentials")
