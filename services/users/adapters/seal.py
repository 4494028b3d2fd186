"""Sealing: AES-256-GCM, bound to what the sealed text comes with."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.users.domain.ports import SealBroken

NONCE_BYTES = 12
FORM = b"\x01"
"""The first byte, so that another way of sealing can follow."""


class AesSeal:
    """A Seal; `key` has 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def close(self, text: str, *, bound_to: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return FORM + nonce + self._cipher.encrypt(nonce, text.encode(), bound_to.encode())

    def open(self, sealed: bytes, *, bound_to: str) -> str:
        nonce, body = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            if sealed[:1] != FORM:
                raise SealBroken
            return self._cipher.decrypt(nonce, body, bound_to.encode()).decode()
        except (InvalidTag, ValueError):
            raise SealBroken from None
