"""The frames on the pipe between the pool and a child; imported by both, so the standard library's smallest parts only."""

import struct
from enum import IntEnum

HEADER = struct.Struct("!BdI")
"""Kind, seconds the task ran, bytes that follow."""

FRAME_BYTES_MAX = 4 * 1024 * 1024
"""Of one argument or result; the pool refuses to send more, and kills a child that announces more."""

ERROR_TEXT_CHARS_MAX = 2000


class Kind(IntEnum):
    READY = 1
    JOB = 2
    STARTED = 3
    RESULT = 4
    ERROR = 5


def frame(kind: Kind, body: bytes = b"", *, run_s: float = 0.0) -> bytes:
    """Return a whole frame. The body of JOB is a pickled `(function, arguments)`, of RESULT a pickle, of ERROR `type\\ntext`."""
    return HEADER.pack(kind, run_s, len(body)) + body
