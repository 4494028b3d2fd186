"""Tokens for tests: a mint with a key of its own that is also the KeySource its tokens are verified with."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.ids import new_id
from shared.tokens import ALGORITHM, AUDIENCE, ISSUER, TICKET_AUDIENCE, TICKET_LASTS_S, TICKET_TYPE, TYPE


class TokenMint:
    """Signs access tokens as the users service does; `keys` and `headers` let a test say something wrong."""

    def __init__(self, key_id: str = "test-key") -> None:
        self.private_key = Ed25519PrivateKey.generate()
        self.key_id = key_id
        self.fetches = 0

    async def fetch(self) -> Sequence[Mapping[str, Any]]:
        self.fetches += 1
        return [self.jwk()]

    def jwk(self) -> dict[str, Any]:
        document: dict[str, Any] = jwt.algorithms.OKPAlgorithm.to_jwk(self.private_key.public_key(), as_dict=True)
        return {**document, "kid": self.key_id, "alg": ALGORITHM, "use": "sig"}

    def token(
        self, subject: str = "", *, role: str = "user", lasts_s: float = 600.0, kind: str = TYPE, **claims: Any
    ) -> str:
        """Return a signed token; `claims` replace the standard ones, a None removes one."""
        now = int(time.time())
        standard: dict[str, Any] = {
            "sub": subject or new_id(),
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + lasts_s,
            "jti": new_id(),
            "sid": new_id(),
            "role": role,
        }
        payload = {name: value for name, value in {**standard, **claims}.items() if value is not None}
        return jwt.encode(payload, self.private_key, algorithm=ALGORITHM, headers={"kid": self.key_id, "typ": kind})

    def ticket(
        self, subject: str = "", *, until_s: float = 600.0, lasts_s: float = TICKET_LASTS_S, **claims: Any
    ) -> str:
        """Return a ticket for one socket, which may live for `until_s`."""
        changed = {"aud": TICKET_AUDIENCE, "until": time.time() + until_s, **claims}
        return self.token(subject, lasts_s=lasts_s, kind=TICKET_TYPE, **changed)

    def bearer(self, subject: str = "", *, role: str = "user", **claims: Any) -> dict[str, str]:
        """Return the `Authorization` header of a fresh token."""
        return {"Authorization": f"Bearer {self.token(subject, role=role, **claims)}"}
