"""A client's socket: held to the slower side's pace, and ended so that what was said last is heard."""

import asyncio
import socket
import struct
from typing import cast

from services.gateway.lane.front import Limits
from services.gateway.lane.outbox import Outbox

_LINGER_NOT = struct.pack("ii", 1, 0)


class FlowProtocol(asyncio.Protocol):
    """The part of a connection that knows nothing of HTTP.

    Deaf, it reads on without listening: what comes can be no request any more.
    """

    # Of more than 30 attributes an instance's dict is its own: 2 KiB a connection, and each look-up dearer.
    __slots__ = (
        "_dropped_bytes",
        "_is_ending",
        "_unchanged_since",
        "_unsent_bytes",
        "_writable",
        "is_deaf",
        "is_read_paused",
        "is_write_paused",
        "limits",
        "outbox",
        "transport",
    )

    limits: Limits
    outbox: Outbox
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_deaf = False
        self.is_read_paused = False
        self.is_write_paused = False
        self._is_ending = False
        self._writable: asyncio.Event | None = None
        self._dropped_bytes = 0
        self._unsent_bytes = 0
        self._unchanged_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one in all but ancestry.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_deaf = True
        self.resume_writing()

    def pause_writing(self) -> None:
        self.is_write_paused = True

    def resume_writing(self) -> None:
        self.is_write_paused = False
        if self._writable is not None:
            self._writable.set()

    def write(self, data: bytes) -> None:
        self.outbox.flush()
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has read enough of what was written, or is gone."""
        while self.is_write_paused:
            self._writable = self._writable or asyncio.Event()
            self._writable.clear()
            await self._writable.wait()

    def pause_reading(self) -> None:
        if not (self.is_read_paused or self.transport.is_closing()):
            self.is_read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_read_paused and not self.transport.is_closing():
            self.is_read_paused = False
            self.transport.resume_reading()

    def drop(self, count: int) -> None:
        """Count bytes that nobody listens to; too many of them end the connection."""
        self._dropped_bytes += count
        if self._dropped_bytes > self.limits.linger_bytes:
            self.transport.abort()

    def close(self) -> None:
        """Close once the client has read what was written."""
        self.outbox.flush()
        self.transport.close()

    def end(self) -> None:
        """Close once the client has read what was written, also where it is still sending.

        Closing on unread bytes makes TCP reset the connection, and the client's system then drops the answer with it.
        """
        self.is_deaf = True
        if self._is_ending:
            return
        self._is_ending = True
        self.outbox.flush()
        if self.transport.can_write_eof():
            self.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()

    @property
    def is_ending(self) -> bool:
        return self._is_ending or self.transport.is_closing()

    def watch_end(self, now: float) -> None:
        """Abort an ending that does not come to its end: a client that reads nothing would keep the socket for ever."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if not self._unchanged_since or unsent_bytes != self._unsent_bytes:
            self._unchanged_since, self._unsent_bytes = now, unsent_bytes
        elif now - self._unchanged_since >= (self.limits.idle_s if unsent_bytes else self.limits.linger_s):
            self.transport.abort()

    def cut(self, *, is_reset: bool) -> None:
        """End in the middle of an answer; reset where a plain end would look like the answer's."""
        if not is_reset:
            self.close()
            return
        self.outbox.flush()
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self.transport.abort()
