"""Log-in: who gets a session, and what becomes of those who guess."""

import structlog

from services.users.domain.ports import PasswordHasher, Tally, UserRepository
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
        tally: Tally,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._passwords = passwords
        self._failed = failed
        self._tally = tally
        self._log = structlog.get_logger()

    async def log_in(self, login: str, password: str, client: Client) -> Tokens:
        """Open a session for a username or e-mail address with its password.

        The answer and the work are the same for an unknown user and a wrong password.
        Raises Unauthorized, TooManyRequests, Unavailable.
        """
        try:
            await self._failed.check(client.address)
        except TooManyRequests:
            self._tally.login("limited")
            raise
        found = await self._verified(login, password)
        if found is None:
            await self._failed.count(client.address)
            self._tally.login("refused")
            raise _login_refused()
        try:
            tokens = await self._sessions.open(found.user, client)
        except NotFound:
            # Deleted between the look-up and here.
            raise _login_refused() from None
        self._tally.login("ok")
        return tokens

    async def _verified(self, login: str, password: str) -> Credentials | None:
        """Return whom login and password fit; one look-up and one hash, whatever comes."""
        found = await self._users.find_login(_readable_login(login))
        try:
            readable = normalise_password(password)
        except ValueError:
            # It was never accepted as a password, so it fits nobody; the decoy keeps the work the same.
            readable, found = "unreadable", None
        fits = await self._passwords.verify(readable, found.password_hash if found else self._passwords.decoy)
        if found is None or not fits:
            return None
        if self._passwords.is_outdated(found.password_hash):
            await self._renew_hash(found, readable)
        return found

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
