"""What a client can decode (RFC 9110, section 12.5.3)."""

import re
from functools import lru_cache

_ACCEPT_BYTES_MAX = 256
_WEIGHT = re.compile(rb"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


@lru_cache(maxsize=256)
def _accepts(value: bytes) -> bool:
    weights: dict[bytes, float] = {}
    for item in value.lower().split(b","):
        coding, has_weight, weight = item.partition(b";")
        name, _, number = weight.partition(b"=")
        if not has_weight:
            found = 1.0
        elif name.strip() == b"q" and _WEIGHT.fullmatch(number.strip()):
            found = float(number)
        else:
            continue
        coding = coding.strip()
        weights[coding] = min(found, weights.get(coding, 1.0))
    gzip = weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", 0.0)))
    # "identity" that is not named is acceptable, but nothing says that it is preferred.
    return gzip > 0 and gzip >= weights.get(b"identity", 0.0)


def accepts_gzip(value: bytes) -> bool:
    """Tell whether an `Accept-Encoding` asks for gzip at least as much as for the plain answer. Without the header: no.

    An item that is no weight is skipped; a value longer than any client's is not read.
    """
    return 0 < len(value) <= _ACCEPT_BYTES_MAX and _accepts(value)
