"""A service in miniature that keeps the contract between the runner and a process; also a gateway in miniature.

`RH_<NAME>_FAKE` steers it: `settings` (refuses them, exit code 78), a path of a file whose content `broken` makes the start fail.
A public one (with `RH_<NAME>_FD`) forwards `GET /NAME` to a ready replica of NAME.
"""

import asyncio
import itertools
import json
import os
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

PREFIX = next(name.removesuffix("PORT") for name in os.environ if name.startswith("RH_") and name.endswith("_PORT"))


def setting(name: str) -> str:
    return os.environ.get(PREFIX + name, "")


class Fake:
    def __init__(self) -> None:
        self.is_draining = False
        self.in_flight: set[asyncio.Task[None]] = set()
        self.turn = itertools.count()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.in_flight.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            status, body = await self.answer(path)
            writer.write(
                f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.in_flight.discard(task)

    async def answer(self, path: str) -> tuple[int, bytes]:
        if path == "/ready":
            return (503 if self.is_draining else 200), b""
        if path == "/env":
            return 200, json.dumps(dict(os.environ)).encode()
        if path.startswith("/slow"):
            await asyncio.sleep(0.3)
        elif setting("FD") and path != "/":
            return await self.forward(path.strip("/"))
        return 200, json.dumps({"replica": setting("REPLICA"), "pid": os.getpid()}).encode()

    async def forward(self, name: str) -> tuple[int, bytes]:
        addresses = json.loads(Path(unquote(urlsplit(setting("ENDPOINTS")).path)).read_text()).get(name) or []
        if not addresses:
            return 503, b"no upstream"
        host, _, port = addresses[next(self.turn) % len(addresses)].partition(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await reader.read()
            writer.close()
        except OSError as error:
            return 502, str(error).encode()
        if not answer:
            return 502, b"upstream closed"
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        servers = [await asyncio.start_server(self.handle, "127.0.0.1", int(setting("PORT")))]
        if setting("FD"):
            public = socket.socket(fileno=int(setting("FD")))
            public.setblocking(False)
            servers.append(await asyncio.start_server(self.handle, sock=public))
        print(json.dumps({"level": "info", "event": "serving", "replica": setting("REPLICA")}), flush=True)
        await stop.wait()
        self.is_draining = True
        for server in servers:
            server.close()
        while self.in_flight:
            await asyncio.wait(set(self.in_flight))


fake = setting("FAKE")
if fake.startswith("/") and Path(fake).read_text() == "broken":
    sys.exit("this source is broken")
if fake == "settings":
    print("users: RH_USERS_FAKE is not a good value", file=sys.stderr)
    sys.exit(78)
asyncio.run(Fake().run())
