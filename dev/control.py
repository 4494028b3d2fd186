"""The channel between the verbs and the running fleet: JSON lines over loopback TCP, opened by a secret token.

One request line `{"token", "verb", ...}`, one answer line `{"ok", "result"}` or `{"ok", "error"}`. A unix socket
would need a short path, which a checkout may not have.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
import socket
from typing import Any

from dev.errors import CannotRun
from dev.state import Record
from dev.supervisor import Supervisor

LINE_BYTES_MAX = 64 * 1024
REQUEST_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 32


class Control:
    """Answers the verbs for one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.token = secrets.token_urlsafe(24)
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens once opened."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Listen on a free loopback port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LINE_BYTES_MAX)

    async def close(self) -> None:
        """Refuse newcomers and end what is being answered."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            if len(self._serving) <= CONNECTIONS_MAX:
                await self._answer(reader, writer)
        except (TimeoutError, ConnectionError, ValueError):
            return  # a peer that does not speak as agreed gets no answer
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            request = json.loads(await reader.readline())
        if not isinstance(request, dict) or not hmac.compare_digest(str(request.get("token", "")), self.token):
            return
        try:
            answer: dict[str, Any] = {"ok": True, "result": await self._do(request)}
        except CannotRun as error:
            answer = {"ok": False, "error": str(error)}
        writer.write(json.dumps(answer).encode() + b"\n")
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            await writer.drain()

    async def _do(self, request: dict[str, Any]) -> Any:
        match request.get("verb"):
            case "status":
                return self._supervisor.status()
            case "restart":
                return await self._supervisor.restart(str(request["name"]))
            case "scale":
                await self._supervisor.scale(str(request["name"]), int(request["count"]))
                return self._supervisor.status()
            case "stop":
                return self._supervisor.stop()
            case other:
                raise CannotRun(f"The running fleet does not know {other!r}: it is of another version, restart it.")


def ask(record: Record, verb: str, *, timeout_s: float = 10.0, **more: Any) -> Any:
    """Send one request to the running fleet and return its result; CannotRun when refused or unreachable."""
    line = json.dumps({"token": record.control_token, "verb": verb, **more}).encode() + b"\n"
    try:
        with contextlib.closing(socket.create_connection(("127.0.0.1", record.control_port), 5.0)) as channel:
            channel.settimeout(timeout_s)
            channel.sendall(line)
            answer = json.loads(channel.makefile("rb").readline() or b"null")
    except TimeoutError as error:
        raise CannotRun(f"The fleet did not answer within {timeout_s:.0f} s: see `python3 dev logs`.") from error
    except (OSError, ValueError) as error:
        raise CannotRun("The fleet does not answer: it is starting or stopping, try again in a second.") from error
    if not isinstance(answer, dict):
        raise CannotRun("The fleet closed the channel: it is stopping.")
    if not answer.get("ok"):
        raise CannotRun(str(answer.get("error")))
    return answer.get("result")
