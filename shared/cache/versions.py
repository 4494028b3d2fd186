"""How a value and its version are one text in the cache: `v<version>:<value>`, so that the server can compare versions itself."""

import re

from shared.cache.base import Versioned

VERSION_MAX = 2**53 - 1
"""Redis's scripts count in double precision."""

PREFIX_BYTES_MAX = 20
_PACKED = re.compile(rb"v(\d{1,16}):")


def check_version(version: int) -> None:
    """Refuse, with a ValueError, a version that cannot be compared everywhere."""
    if not 0 <= version <= VERSION_MAX:
        raise ValueError(f"a version is 0 to {VERSION_MAX}")


def pack(value: bytes, version: int) -> bytes:
    """Return a value with its version as they are stored."""
    return b"v%d:%b" % (version, value)


def unpack(stored: bytes | None) -> Versioned | None:
    """Return what was packed, None for nothing and for what another program stored."""
    found = _PACKED.match(stored) if stored is not None else None
    if stored is None or found is None:
        return None
    return Versioned(stored[found.end() :], int(found[1]))
