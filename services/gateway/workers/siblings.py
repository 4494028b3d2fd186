"""The channel between workers: one asks all, each answers for itself.

One request a connection, on a stream socket of the abstract kind (unix(7)): it has no file that a killed process could leave behind
or another user could reach by its rights, so who connects is checked by SO_PEERCRED instead. Request: length of the verb (1 byte),
length of the payload (4 bytes, network order), verb, payload. Reply: 0 or 1 (1: the body says why not), length (4 bytes), body.
"""

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from shared.errors import Problem

ASK_TIMEOUT_S = 1.0
SERVE_TIMEOUT_S = 5.0
PAYLOAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 32 * 1024 * 1024
"""The metrics of a worker with 1,000 routes are some 10 MB."""
AT_ONCE_MAX = 16
BACKLOG = 64
SILENT = "no answer in time"

_REQUEST = struct.Struct("!BI")
_REPLY = struct.Struct("!BI")
_PEER = struct.Struct("iII")

Handler = Callable[[bytes], Awaitable[bytes]]
"""Answers a payload. A Problem that it raises reaches the asker as the reply's `problem`."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reply:
    """What one worker said; `problem` says why there is no `body`."""

    worker: int
    body: bytes | None
    problem: str = ""


class Siblings:
    """All workers of this gateway, as one of them sees them; alone, where there is only one process.

    Workers are numbered from 1. A worker that is replaced is still the same number.
    """

    def __init__(
        self, number: int = 1, addresses: Sequence[str] = ("",), listener: socket.socket | None = None
    ) -> None:
        """`addresses` are those of all workers in their order; `listener` is this one's own, already listening."""
        self.number = number
        self.count = len(addresses)
        self._addresses = addresses
        self._listener = listener
        self._handlers: dict[str, Handler] = {}
        self._serving = 0
        self._has_left = False

    def on(self, verb: str, handler: Handler) -> None:
        """Answer a verb from here on; call it before the workers talk to each other, in every worker alike."""
        assert verb not in self._handlers
        assert 0 < len(verb.encode()) < 256
        self._handlers[verb] = handler

    async def gather(
        self, verb: str, payload: bytes = b"", *, timeout_s: float = ASK_TIMEOUT_S, others_only: bool = False
    ) -> list[Reply]:
        """Ask every worker, this one too unless `others_only`, and return a reply of each, by number; never raises.

        A worker that is just being replaced may miss a request: its reply then has a problem. What workers must agree on
        belongs into the configuration.
        """
        asked = [self._ask(n, verb, payload, timeout_s) for n in range(1, self.count + 1) if n != self.number]
        own = [] if others_only else [self._own(verb, payload, timeout_s)]
        found = await asyncio.gather(*own, *asked)
        return sorted(found, key=lambda reply: reply.worker)

    async def _own(self, verb: str, payload: bytes, timeout_s: float) -> Reply:
        if self._has_left:
            reply = await self._ask(self.number, verb, payload, timeout_s)
            if reply.problem != SILENT:
                return reply
        try:
            async with asyncio.timeout(timeout_s):
                has_failed, body = await self._answer(verb, payload)
        except TimeoutError:
            return Reply(self.number, None, SILENT)
        return Reply(self.number, None, body.decode()) if has_failed else Reply(self.number, body)

    async def _ask(self, number: int, verb: str, payload: bytes, timeout_s: float) -> Reply:
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(sock=_connect(self._addresses[number - 1]))
                try:
                    name = verb.encode()
                    writer.write(_REQUEST.pack(len(name), len(payload)) + name + payload)
                    has_failed, length = _REPLY.unpack(await reader.readexactly(_REPLY.size))
                    body = await reader.readexactly(min(length, BODY_BYTES_MAX))
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.warning("worker_silent", worker=number, verb=verb, reason=f"{type(error).__name__}: {error}"[:300])
            return Reply(number, None, SILENT)
        return Reply(number, None, body.decode()) if has_failed else Reply(number, body)

    async def _answer(self, verb: str, payload: bytes) -> tuple[bool, bytes]:
        handler = self._handlers.get(verb)
        if handler is None:
            return True, b"unknown verb"
        try:
            body = await handler(payload)
        except Problem as problem:
            return True, str(problem).encode()
        except Exception:
            log.exception("worker_request_failed", verb=verb)
            return True, b"internal fault"
        return (True, b"the answer is too long") if len(body) > BODY_BYTES_MAX else (False, body)

    async def serve(self, leaving: asyncio.Event) -> None:
        """Answer the others until `leaving` is set; a background task of the service. Returns at once where there are none.

        From then on this worker's number is its successor's, and is asked there even by this worker itself.
        """
        if self._listener is None:
            return
        # Of a copy: the server closes what it is given, and a task that failed is started again.
        server = await asyncio.start_unix_server(self._on_connection, sock=self._listener.dup())
        async with server:
            await leaving.wait()
            self._has_left = True
        self._listener.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving += 1
        try:
            if self._serving <= AT_ONCE_MAX and _uid_of(writer) == os.geteuid():
                async with asyncio.timeout(SERVE_TIMEOUT_S):
                    await self._serve_one(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.warning("worker_asked_in_vain", reason=f"{type(error).__name__}: {error}"[:300])
        finally:
            self._serving -= 1
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name_length, length = _REQUEST.unpack(await reader.readexactly(_REQUEST.size))
        verb = (await reader.readexactly(name_length)).decode(errors="replace")
        if length > PAYLOAD_BYTES_MAX:
            has_failed, body = True, b"the payload is too long"
        else:
            has_failed, body = await self._answer(verb, await reader.readexactly(length))
        writer.write(_REPLY.pack(has_failed, len(body)) + body)
        await writer.drain()


def _connect(address: str) -> socket.socket:
    """Return a connection, never waiting: a full backlog is an error at once. Raises OSError."""
    # Not by the loop: uvloop has no addresses of the abstract kind.
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    found.setblocking(False)
    try:
        found.connect(address)
    except OSError:
        found.close()
        raise
    return found


def _uid_of(writer: asyncio.StreamWriter) -> int:
    """Return whose process is at the other end."""
    peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(peer)[1])


def open_channels(count: int) -> Mapping[str, socket.socket]:
    """Return `count` new addresses and the sockets that listen there (Linux)."""
    name = secrets.token_hex(16)
    found = {}
    for number in range(1, count + 1):
        address = f"\0roundhouse-gateway-{name}-{number}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(address)
        sock.listen(BACKLOG)
        found[address] = sock
    return found
