"""What a cache refuses before it asks anyone: bad keys, values and times."""

from shared.cache.base import KEY_BYTES_MAX, VALUE_BYTES_MAX


def check_key(key: str) -> None:
    """Refuse, with a ValueError, a key that is empty or too long."""
    if not key or len(key.encode()) > KEY_BYTES_MAX:
        raise ValueError(f"a cache key has 1 to {KEY_BYTES_MAX} bytes")


def check_value(value: bytes) -> None:
    """Refuse, with a ValueError, a value that is too large."""
    if len(value) > VALUE_BYTES_MAX:
        raise ValueError(f"a cached value has at most {VALUE_BYTES_MAX} bytes, this one has {len(value)}")


def check_ttl(ttl_s: float) -> None:
    """Refuse, with a ValueError, a time to live that is not above zero and finite."""
    if not 0 < ttl_s < float("inf"):
        raise ValueError("a cached value's time to live is above zero seconds and finite")


def milliseconds(ttl_s: float) -> int:
    """Return a time to live in whole milliseconds, at least one."""
    return max(1, round(ttl_s * 1000))
