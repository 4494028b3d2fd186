"""Cursors: a place in a list as opaque text, signed, so that only what we gave out for the same list is taken back."""

import base64
import hmac
from collections.abc import Sequence

import orjson

from shared.errors import FieldError, InvalidInput

TAG_BYTES = 16
CURSOR_CHARS_MAX = 2048
"""A place holds at most an address of 254 characters, each up to four bytes."""


class Cursors:
    """Makes and reads cursors under a secret key. `scope` says which list: what is sorted and filtered how."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def write(self, scope: bytes, place: Sequence[str | int]) -> str:
        payload = orjson.dumps(place)
        return base64.urlsafe_b64encode(self._tag(scope, payload) + payload).rstrip(b"=").decode()

    def read(self, scope: bytes, cursor: str) -> list[str | int]:
        """Return the place that `write` was given. Raises InvalidInput for any other text, and for a cursor of another list."""
        try:
            raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        tag, payload = raw[:TAG_BYTES], raw[TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(scope, payload)):
            message = "this is no cursor of ours for these filters and this sort"
            raise InvalidInput(f"query.cursor: {message}", errors=[FieldError("query.cursor", message, "cursor")])
        place: list[str | int] = orjson.loads(payload)
        return place

    def _tag(self, scope: bytes, payload: bytes) -> bytes:
        # The length keeps a scope and a payload from being cut elsewhere.
        signed = len(scope).to_bytes(4, "big") + scope + payload
        return hmac.digest(self._key, signed, "sha256")[:TAG_BYTES]
