"""Signing keys: Ed25519, kept in the store with the private half sealed, shared by all replicas; and the tokens they sign."""

import asyncio
import base64
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from services.users.adapters.start import KeySealError
from services.users.domain.ports import KeyStore
from services.users.model.records import StoredKey, User
from shared.errors import DeadlineExceeded, Unavailable
from shared.ids import new_id
from shared.tokens import ALGORITHM, AUDIENCE, ISSUER, TICKET_AUDIENCE, TICKET_LASTS_S, TICKET_TYPE, TYPE

FETCH_TIMEOUT_S = 0.5

SALT_BYTES = 16
NONCE_BYTES = 12
SEAL_FORM = b"\x01"
"""The first byte of a sealed key, so that another way of sealing can follow."""

SEAL_COST = 2**14
"""The seal may be a passphrase, so its derivation is slow (scrypt, RFC 7914): 16 MiB and about 50 ms, once a start."""


def _derived(seal: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=SEAL_COST, r=8, p=1).derive(seal.encode())


def seal_key(private_key: bytes, seal: str, kid: str) -> bytes:
    """Encrypt a private key with AES-256-GCM under a key derived from the seal; the key id is bound to it. Blocks for 50 ms."""
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    return SEAL_FORM + salt + nonce + AESGCM(_derived(seal, salt)).encrypt(nonce, private_key, kid.encode())


def open_key(sealed: bytes, seal: str, kid: str) -> bytes:
    """Return the private key. Raises KeySealError when the seal is another one. Blocks for 50 ms."""
    salt, nonce = sealed[1 : 1 + SALT_BYTES], sealed[1 + SALT_BYTES : 1 + SALT_BYTES + NONCE_BYTES]
    try:
        if sealed[:1] != SEAL_FORM:
            raise KeySealError(f"the signing key {kid} is sealed in a form that this version does not know")
        return AESGCM(_derived(seal, salt)).decrypt(nonce, sealed[1 + SALT_BYTES + NONCE_BYTES :], kid.encode())
    except InvalidTag:
        raise KeySealError(
            f"RH_USERS_KEY_SEAL does not open the signing key {kid} in the database: give the seal it was made with"
        ) from None


def successor_key(seal: str) -> bytes:
    """Return the key by which refresh tokens follow each other. Blocks for 50 ms.

    Derived as slowly as the others: whoever has two tokens in a row could else try out passphrases as fast as HMAC goes.
    """
    return _derived(seal, b"roundhouse users refresh tokens")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _key_id(public_key: bytes) -> str:
    """Return the thumbprint of a key (RFC 7638)."""
    members = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(public_key)}
    return _base64url(hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest())


def make_key(seal: str) -> StoredKey:
    """Return a new key, sealed. Blocks for 50 ms."""
    private_key = Ed25519PrivateKey.generate()
    public_key = private_key.public_key().public_bytes_raw()
    kid = _key_id(public_key)
    now = datetime.now(UTC)
    return StoredKey(kid, public_key, seal_key(private_key.private_bytes_raw(), seal, kid), now, "active", now)


def jwk_of(key: StoredKey) -> dict[str, str]:
    """Return the public half as a JWK (RFC 8037)."""
    Ed25519PublicKey.from_public_bytes(key.public_key)  # refuses what is no key before anybody is told of it
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": _base64url(key.public_key),
        "kid": key.kid,
        "alg": ALGORITHM,
        "use": "sig",
    }


class SigningKeys:
    """The active key signs, all are published. A TokenIssuer, and the KeySource with which this service verifies."""

    def __init__(self, store: KeyStore, seal: str, *, lasts_s: int, max_age_s: int) -> None:
        """Call `load` instead. `max_age_s` is how long others may keep what is published."""
        self.lasts_s = lasts_s
        self.max_age_s = max_age_s
        self._store = store
        self._seal = seal
        self._kid = ""
        self.etag = ""

    @classmethod
    async def load(cls, store: KeyStore, seal: str, *, lasts_s: int, max_age_s: int = 300) -> "SigningKeys":
        """Load the keys, making the first where there is none. Raises KeySealError, Unavailable."""
        found = cls(store, seal, lasts_s=lasts_s, max_age_s=max_age_s)
        keys = await store.all()
        if not keys:
            first = await found.make()
            # Replicas that start together agree on one.
            keys = await store.change(lambda keys: (keys or [first], []))
        await found.take(keys)
        return found

    async def make(self) -> StoredKey:
        """Return a new key, sealed."""
        return await asyncio.to_thread(make_key, self._seal)

    async def take(self, keys: Sequence[StoredKey]) -> bool:
        """Publish these keys and sign with the newest active one; tell whether others were published. Raises KeySealError."""
        signing = next((key for key in keys if key.state == "active"), keys[0])
        if signing.kid != self._kid:
            private_key = await asyncio.to_thread(open_key, signing.sealed_key, self._seal, signing.kid)
            self._signer = Ed25519PrivateKey.from_private_bytes(private_key)
            self._kid = signing.kid
        before = self.etag
        self._publish(keys)
        return self.etag != before

    def _publish(self, keys: Sequence[StoredKey]) -> None:
        self._jwks = [jwk_of(key) for key in keys]
        self.document = json.dumps({"keys": self._jwks}, separators=(",", ":")).encode()
        self.etag = f'"{hashlib.sha256(self.document).hexdigest()[:32]}"'

    async def fetch(self) -> Sequence[Mapping[str, Any]]:
        """Return the public keys, read again from the store; those known when the store is away."""
        # Whoever has a token waits for this, so a store that hangs must not hold it up: what was read before still verifies.
        with suppress(Unavailable, DeadlineExceeded, TimeoutError):
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                self._publish(await self._store.all())
        return self._jwks

    def issue(self, user: User, session_id: str) -> str:
        """Return an access token (RFC 9068), good for `lasts_s` seconds."""
        return self._signed(user, session_id, AUDIENCE, TYPE, lasts_s=self.lasts_s)

    def issue_ticket(self, user: User, session_id: str, *, until: float) -> str:
        """Return a ticket, good for 30 seconds and one socket, which may live until then (epoch seconds)."""
        return self._signed(user, session_id, TICKET_AUDIENCE, TICKET_TYPE, lasts_s=TICKET_LASTS_S, until=until)

    def _signed(self, user: User, session_id: str, audience: str, kind: str, *, lasts_s: int, **more: float) -> str:
        now = int(time.time())
        claims = {
            "sub": user.id,
            "iss": ISSUER,
            "aud": audience,
            "iat": now,
            "exp": now + lasts_s,
            "jti": new_id(),
            "sid": session_id,
            "role": user.role,
            **more,
        }
        return jwt.encode(claims, self._signer, algorithm=ALGORITHM, headers={"kid": self._kid, "typ": kind})
