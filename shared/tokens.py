"""Access tokens: verified in every service by the issuer's public keys, with no call per request."""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
import structlog
from jwt.utils import base64url_decode

from shared.errors import Unauthorized, Unavailable

ISSUER = "roundhouse"
AUDIENCE = "roundhouse"
ALGORITHM = "EdDSA"
TYPE = "at+jwt"
TICKET_AUDIENCE = "roundhouse-sockets"
TICKET_TYPE = "ticket+jwt"
TICKET_LASTS_S = 30
TICKET_LEEWAY_S = 5
LEEWAY_S = 30
TOKEN_CHARS_MAX = 8192
TOKEN_LASTS_S_MAX = 3600
"""No issuer of ours gives a token more; so long a revocation is of interest."""

REMEMBERED_MAX = 10_000
"""Verified tokens kept: an EdDSA check costs 150 µs, a look-up in a dict 0.2."""

KEYS_FRESH_S = 300.0
REFETCH_WAIT_S = 1.0
"""At most one fetch a second for unknown key ids, so that forged ones cannot flood the issuer."""

_CLAIMS = ("sub", "iss", "aud", "iat", "exp", "jti", "sid", "role")
_TICKET_CLAIMS = (*_CLAIMS, "until")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is asking, as a verified token says it; times in epoch seconds, `tier` the plan of a customer, empty for none."""

    subject: str
    role: str
    session_id: str
    token_id: str
    expires_at: float
    tier: str = ""
    issued_at: float = 0.0

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"


class KeySource(Protocol):
    async def fetch(self) -> Sequence[Mapping[str, Any]]:
        """Return the public keys as JWKs (RFC 7517). Raises Unavailable when the issuer cannot be asked."""


class Revoked(Protocol):
    def covers(self, token: Identity) -> bool:
        """Tell whether a token is refused before it expires."""


class TokenVerifier:
    """Verifies `at+jwt` access tokens (RFC 9068) signed with EdDSA; the algorithm is pinned, whatever the token says.

    `revoked` is asked for every token at every use.
    """

    def __init__(self, source: KeySource, revoked: Revoked | None = None) -> None:
        self.revoked = revoked
        self._source = source
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = -1e9
        self._tried_at = -1e9
        self._lock = asyncio.Lock()
        self._verified: OrderedDict[str, Identity] = OrderedDict()
        self._log = structlog.get_logger()

    def remembered(self, token: str) -> Identity | None:
        """Return the identity of a token verified before, None when it must be verified (again)."""
        found = self._verified.get(token)
        if found is None:
            return None
        if found.expires_at + LEEWAY_S < time.time() or (self.revoked is not None and self.revoked.covers(found)):
            del self._verified[token]
            return None
        return found

    def renew(self) -> None:
        """Forget what was verified, and ask for the keys again before the next token is: one of them may be taken back."""
        self._verified.clear()
        self._fetched_at = self._tried_at = -1e9

    async def verify(self, token: str) -> Identity:
        """Return who the token stands for. Raises Unauthorized; Unavailable when no key could be fetched yet."""
        found = self.remembered(token)
        if found is not None:
            return found
        key = await self._key(_key_id(token))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                leeway=LEEWAY_S,
                options={"require": list(_CLAIMS)},
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("the access token has expired", code="token_expired") from error
        except jwt.PyJWTError as error:
            raise Unauthorized("the access token is not valid", code="token_invalid") from error
        _refuse_repeated(token, 1)
        identity = _identity(claims)
        if self.revoked is not None and self.revoked.covers(identity):
            raise session_ended()
        self._verified[token] = identity
        while len(self._verified) > REMEMBERED_MAX:
            self._verified.popitem(last=False)
        return identity

    async def verify_ticket(self, ticket: str) -> Identity:
        """Return who a socket's ticket stands for, and until when its socket may live (`expires_at`).

        Whether it has been used, others know. Raises Unauthorized; Unavailable when no key could be fetched yet.
        """
        try:
            claims = jwt.decode(
                ticket,
                await self._key(_key_id(ticket, TICKET_TYPE)),
                algorithms=[ALGORITHM],
                audience=TICKET_AUDIENCE,
                issuer=ISSUER,
                leeway=TICKET_LEEWAY_S,
                options={"require": list(_TICKET_CLAIMS)},
            )
            _refuse_repeated(ticket, 1)
            identity = _identity({**claims, "exp": float(claims["until"])})
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("the ticket has expired", code="ticket_expired") from error
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise Unauthorized("the ticket is not valid", code="ticket_invalid") from error
        if self.revoked is not None and self.revoked.covers(identity):
            raise session_ended()
        return identity

    async def _key(self, key_id: str) -> jwt.PyJWK:
        if key_id not in self._keys or time.monotonic() - self._fetched_at > KEYS_FRESH_S:
            await self._refresh(key_id)
        if key_id in self._keys:
            return self._keys[key_id]
        if not self._keys:
            raise Unavailable("access tokens cannot be checked at the moment", code="keys_unavailable")
        raise Unauthorized("the access token is not valid", code="token_invalid")

    async def _refresh(self, key_id: str) -> None:
        async with self._lock:
            now = time.monotonic()
            is_fresh = now - self._fetched_at < KEYS_FRESH_S
            if (is_fresh and key_id in self._keys) or now - self._tried_at < REFETCH_WAIT_S:
                return
            self._tried_at = now
            try:
                found = await self._source.fetch()
                keys = {str(item["kid"]): jwt.PyJWK(dict(item), algorithm=ALGORITHM) for item in found if "kid" in item}
            except (Unavailable, jwt.PyJWTError) as error:
                # Old keys go on serving: the issuer being away must not sign anybody out.
                self._log.warning("keys_not_fetched", reason=f"{type(error).__name__}: {error}"[:300])
                return
            if self._keys.keys() - keys.keys():
                # Tokens of a key that is no more are not to be remembered as good.
                self._verified.clear()
            self._keys = keys
            self._fetched_at = now


def session_ended() -> Unauthorized:
    return Unauthorized("the session has ended", code="session_ended")


def _key_id(token: str, kind: str = TYPE) -> str:
    """Read the key id of a token's header, after the checks that need no key."""
    if len(token) > TOKEN_CHARS_MAX:
        raise Unauthorized("the access token is not valid", code="token_invalid")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise Unauthorized("the access token is not valid", code="token_invalid") from error
    _refuse_repeated(token, 0)
    key_id = header.get("kid")
    if header.get("typ") != kind or header.get("alg") != ALGORITHM or not isinstance(key_id, str):
        raise Unauthorized("the access token is not valid", code="token_invalid")
    return key_id


def _refuse_repeated(token: str, part: int) -> None:
    """Refuse a header (part 0) or claims (part 1) that name a member twice: two readers could believe different ones (RFC 7515)."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Unauthorized("the access token is not valid", code="token_invalid")
        return found

    json.loads(base64url_decode(token.split(".")[part]), object_pairs_hook=once)


def _identity(claims: Mapping[str, Any]) -> Identity:
    texts = [claims[name] for name in ("sub", "role", "sid", "jti")]
    tier = claims.get("tier", "")
    if not all(isinstance(text, str) and text for text in texts) or not isinstance(tier, str):
        raise Unauthorized("the access token is not valid", code="token_invalid")
    subject, role, session_id, token_id = texts
    return Identity(subject, role, session_id, token_id, float(claims["exp"]), tier, float(claims["iat"]))
