"""Sessions: opened by a log-in, kept by refreshing, shown to their user, and ended for every service at once."""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog

from services.users.domain.audit import entry_of
from services.users.domain.events import session_ended, session_reused
from services.users.domain.ports import SESSIONS_PER_USER_MAX, RefreshReused, SessionRepository, Tally, TokenIssuer
from services.users.model.records import Actor, Client, Event, Exchange, Session, Tokens, User
from shared.errors import NotFound, Unauthorized
from shared.ids import is_id, new_id
from shared.revocation import Revocation
from shared.tokens import LEEWAY_S
from shared.tokens import session_ended as session_over

FAMILY_BYTES = 16
"""The half of a refresh token that stays; 128 bits cannot be guessed, and naming it wrongly ends no session."""

SECRET_BYTES = 32
"""The half that changes at every use: an HMAC-SHA256 of the token before, so that tabs which refresh together get the same."""

GRACE_S = 10.0
"""So long after its exchange a token gives its successor again; a network that loses an answer needs as much."""

MARGIN_S = 10.0
"""A token may be issued while the end of its session waits for the store."""


class Endings:
    """How sessions end for every service: the event, stored with the end, and then `tell(event)`, which does not wait for a relay."""

    def __init__(self, *, token_lasts_s: float, tell: Callable[[Event], Awaitable[None]]) -> None:
        self.tell = tell
        self._until_s = token_lasts_s + LEEWAY_S + MARGIN_S

    def event(self, user_id: str, reason: str, *, session_id: str = "", keep: str = "") -> Event:
        """Return the event that a session of a user has ended now, or all it had but `keep`."""
        now = round(time.time(), 3)
        return session_ended(Revocation(user_id, now, now + self._until_s, session_id, keep), reason)


class SessionService:
    """`lasts_s`: so long after a log-in its refresh token works at most. `successor_key` is the same on every replica and start."""

    def __init__(
        self,
        sessions: SessionRepository,
        issuer: TokenIssuer,
        endings: Endings,
        tally: Tally,
        *,
        successor_key: bytes,
        lasts_s: float,
    ) -> None:
        self._sessions = sessions
        self._issuer = issuer
        self._endings = endings
        self._tally = tally
        self._successor_key = successor_key
        self._lasts = timedelta(seconds=lasts_s)
        self._log = structlog.get_logger()

    async def open(self, user: User, client: Client) -> Tokens:
        """Open a session. Raises NotFound: the user is gone."""
        family, secret = secrets.token_bytes(FAMILY_BYTES), secrets.token_bytes(SECRET_BYTES)
        now = datetime.now(UTC)
        session = Session(
            id=new_id(),
            user_id=user.id,
            family_hash=_digest(family),
            refresh_hash=_digest(secret),
            created_at=now,
            expires_at=now + self._lasts,
            used_at=now,
            address=client.address,
            user_agent=client.user_agent,
        )
        actor = Actor(user.id, user.role, session.id)
        audit = entry_of("session.opened", user_id=user.id, actor=actor, after={"session_id": session.id})
        if await self._sessions.open(session, audit=audit) > SESSIONS_PER_USER_MAX:
            for oldest in (await self.of_user(user.id))[SESSIONS_PER_USER_MAX:]:
                await self._end(actor, user.id, "over_limit", session_id=oldest.id)
        return self._tokens(user, session.id, family + secret)

    def _tokens(self, user: User, session_id: str, refresh: bytes) -> Tokens:
        refresh_token = base64.urlsafe_b64encode(refresh).decode()
        access_token = self._issuer.issue(user, session_id)
        return Tokens(access_token, refresh_token, self._issuer.lasts_s, self._lasts.total_seconds())

    async def refresh(self, refresh_token: str, client: Client) -> Tokens:
        """Exchange a refresh token for new tokens; once, again within 10 s, and after that it ends the session.

        Raises Unauthorized, Unavailable.
        """
        family, secret = _halves(refresh_token)
        successor = hmac.digest(self._successor_key, family + secret, "sha256")
        now = datetime.now(UTC)
        exchange = Exchange(
            family_hash=_digest(family),
            used_hash=_digest(secret),
            next_hash=_digest(successor),
            now=now,
            grace_from=now - timedelta(seconds=GRACE_S),
            client=client,
        )
        try:
            session_id, user = await self._sessions.rotate(exchange)
        except RefreshReused as reused:
            await self._end_reused(reused.user_id, reused.session_id)
            raise _refresh_refused() from None
        except NotFound:
            raise _refresh_refused() from None
        return self._tokens(user, session_id, family + successor)

    async def _end_reused(self, user_id: str, session_id: str) -> None:
        ended = self._endings.event(user_id, "reused", session_id=session_id)
        audit = entry_of("session.reused", user_id=user_id, after={"session_id": session_id})
        events = [session_reused(user_id, session_id), ended]
        if await self._sessions.end(user_id, session_id=session_id, events=events, audit=audit):
            self._log.warning("refresh_reused", user=user_id, session=session_id, action="session ended")
            self._tally.session_ended("reused")
            await self._endings.tell(ended)

    async def user_of(self, actor: Actor) -> User:
        """Return the record behind a token whose session still lives. Raises Unauthorized, Unavailable."""
        try:
            if not is_id(actor.session_id):
                raise NotFound
            found = await self._sessions.user_of(actor.session_id, now=datetime.now(UTC))
        except NotFound:
            raise session_over() from None
        if found.id != actor.user_id:
            raise session_over()
        return found

    async def ticket(self, actor: Actor, *, until: float) -> str:
        """Return a ticket for a socket, which may live as long as the access token that asks. Raises Unauthorized, Unavailable."""
        return self._issuer.issue_ticket(await self.user_of(actor), actor.session_id, until=until)

    async def log_out(self, actor: Actor) -> None:
        """End the token's session; doing it twice is no error. Raises Unavailable."""
        if is_id(actor.session_id) and is_id(actor.user_id):
            await self._end(actor, actor.user_id, "logged_out", session_id=actor.session_id)

    async def of_user(self, user_id: str) -> list[Session]:
        """Return the live sessions of a user, newest first. Raises Unavailable."""
        return await self._sessions.of_user(user_id, now=datetime.now(UTC)) if is_id(user_id) else []

    async def end(self, actor: Actor, user_id: str, session_id: str) -> None:
        """End one session of a user. Raises NotFound, Unavailable."""
        is_ended = is_id(session_id) and await self._end(actor, user_id, "revoked", session_id=session_id)
        if not is_ended:
            raise NotFound("there is no such session")

    async def end_all(self, actor: Actor, user_id: str, *, keep: str = "") -> None:
        """End every session of a user but `keep`. Raises Unavailable."""
        if is_id(user_id):
            await self._end(actor, user_id, "revoked", keep=keep)

    async def _end(self, actor: Actor, user_id: str, reason: str, *, session_id: str = "", keep: str = "") -> bool:
        event = self._endings.event(user_id, reason, session_id=session_id, keep=keep)
        what = {"session_id": session_id} if session_id else {"sessions": "all others" if keep else "all"}
        audit = entry_of("session.ended", user_id=user_id, actor=actor, after={**what, "reason": reason})
        ended = await self._sessions.end(user_id, session_id=session_id, keep=keep, events=[event], audit=audit)
        if ended:
            self._tally.session_ended(reason)
            await self._endings.tell(event)
        return ended > 0


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
