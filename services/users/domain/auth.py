"""Log-in, sessions and refresh: who gets tokens, for how long, and what ends them."""

import base64
import hashlib
import secrets
from datetime import UTC, datetime, timedelta

import structlog

from services.users.domain.ports import (
    PasswordHasher,
    RefreshReused,
    SessionRepository,
    Tally,
    TokenIssuer,
    UserRepository,
)
from services.users.domain.throttle import FailedLogins
from services.users.model.records import Actor, Credentials, Session, Tokens, User
from services.users.model.text import LOGIN_CHARS_MAX, fold, normalise_password
from shared.errors import NotFound, TooManyRequests, Unauthorized, Unavailable
from shared.ids import is_id, new_id

FAMILY_BYTES = 16
"""The half of a refresh token that stays; 128 bits cannot be guessed, and naming it wrongly ends no session."""

SECRET_BYTES = 32
"""The half that changes at every use."""


class AuthService:
    """`session_lasts_s`: so long after a log-in its refresh token works at most."""

    def __init__(
        self,
        *,
        users: UserRepository,
        sessions: SessionRepository,
        passwords: PasswordHasher,
        issuer: TokenIssuer,
        failed: FailedLogins,
        tally: Tally,
        session_lasts_s: float,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._passwords = passwords
        self._issuer = issuer
        self._failed = failed
        self._tally = tally
        self._session_lasts = timedelta(seconds=session_lasts_s)
        self._log = structlog.get_logger()

    async def log_in(self, login: str, password: str, *, address: str) -> Tokens:
        """Open a session for a username or e-mail address with its password.

        The answer and the work are the same for an unknown user and a wrong password.
        Raises Unauthorized, TooManyRequests, Unavailable.
        """
        try:
            await self._failed.check(address)
        except TooManyRequests:
            self._tally.login("limited")
            raise
        found = await self._verified(login, password)
        if found is None:
            await self._failed.count(address)
            self._tally.login("refused")
            raise Unauthorized("username or password is wrong", code="invalid_credentials")
        tokens = await self._open(found.user)
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

    async def _open(self, user: User) -> Tokens:
        family, secret = secrets.token_bytes(FAMILY_BYTES), secrets.token_bytes(SECRET_BYTES)
        now = datetime.now(UTC)
        session = Session(
            id=new_id(),
            user_id=user.id,
            family_hash=_digest(family),
            refresh_hash=_digest(secret),
            created_at=now,
            expires_at=now + self._session_lasts,
        )
        try:
            await self._sessions.open(session)
        except NotFound:
            # Deleted between the look-up and here.
            raise Unauthorized("username or password is wrong", code="invalid_credentials") from None
        return self._tokens(user, session.id, family + secret)

    def _tokens(self, user: User, session_id: str, refresh: bytes) -> Tokens:
        refresh_token = base64.urlsafe_b64encode(refresh).decode()
        return Tokens(self._issuer.issue(user, session_id), refresh_token, self._issuer.lasts_s)

    async def refresh(self, refresh_token: str) -> Tokens:
        """Exchange a refresh token for new tokens; it works once, and using it again ends the session.

        Raises Unauthorized, Unavailable.
        """
        family, secret = _halves(refresh_token)
        next_secret = secrets.token_bytes(SECRET_BYTES)
        try:
            session_id, user = await self._sessions.rotate(
                family_hash=_digest(family),
                used_hash=_digest(secret),
                next_hash=_digest(next_secret),
                now=datetime.now(UTC),
            )
        except RefreshReused:
            self._log.warning("refresh_reused", action="session ended")
            raise _refresh_refused() from None
        except NotFound:
            raise _refresh_refused() from None
        return self._tokens(user, session_id, family + next_secret)

    async def user_of(self, actor: Actor) -> User:
        """Return the record behind a token whose session still lives. Raises Unauthorized, Unavailable."""
        try:
            if not is_id(actor.session_id):
                raise NotFound
            found = await self._sessions.user_of(actor.session_id, now=datetime.now(UTC))
        except NotFound:
            raise _session_ended() from None
        if found.id != actor.user_id:
            raise _session_ended()
        return found

    async def log_out(self, actor: Actor) -> None:
        """End the token's session; doing it twice is no error. Raises Unavailable."""
        if is_id(actor.session_id):
            await self._sessions.end(actor.session_id)


def _readable_login(login: str) -> str:
    """Return a login as names and addresses are stored; what cannot be one becomes a text that nobody has."""
    found = fold(login.strip()) if len(login) <= LOGIN_CHARS_MAX else ""
    return "" if "\x00" in found else found


def _digest(token: bytes) -> bytes:
    # A plain hash suffices: the token is random, there is nothing to guess.
    return hashlib.sha256(token).digest()


def _halves(refresh_token: str) -> tuple[bytes, bytes]:
    try:
        raw = base64.b64decode(refresh_token.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError:
        raise _refresh_refused() from None
    if len(raw) != FAMILY_BYTES + SECRET_BYTES:
        raise _refresh_refused()
    return raw[:FAMILY_BYTES], raw[FAMILY_BYTES:]


def _refresh_refused() -> Unauthorized:
    return Unauthorized("the refresh token is not valid", code="refresh_invalid")


def _session_ended() -> Unauthorized:
    return Unauthorized("the session has ended", code="session_ended")
