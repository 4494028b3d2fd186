"""Keys for one purpose each, derived from the key seal, so that all replicas have the same and none tells of another."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32


def derived_key(secret: str | bytes, purpose: str) -> bytes:
    """Return the key of a purpose (HKDF, RFC 5869)."""
    secret = secret.encode() if isinstance(secret, str) else secret
    return HKDF(SHA256(), length=KEY_BYTES, salt=None, info=f"roundhouse/users/{purpose}".encode()).derive(secret)
