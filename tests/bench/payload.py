"""A long body that both ends can make and check: every block begins with its number, so that none can be lost, doubled or swapped."""

import hashlib
import random
from collections.abc import Iterator

BLOCK_BYTES = 256 * 1024
_REST = random.Random(4).randbytes(BLOCK_BYTES - 8)


def blocks(total: int) -> Iterator[bytes]:
    """Yield `total` bytes in blocks; the last one is cut."""
    number = 0
    while total > 0:
        block = number.to_bytes(8) + _REST
        yield block[:total]
        total -= len(block)
        number += 1


def digest(total: int) -> str:
    """Return the SHA-256 of those bytes in hexadecimal."""
    found = hashlib.sha256()
    for block in blocks(total):
        found.update(block)
    return found.hexdigest()
