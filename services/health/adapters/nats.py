"""The probe of NATS: connect, and have JetStream describe the account; in the protocol's own words.

Not through the bus: it refuses the server's own subjects (`$JS.API.INFO`), and holds a connection through trouble, where a probe
wants to know whether a client can come in now. The protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol.
"""

import asyncio
import ssl
from urllib.parse import urlsplit

import orjson

from services.health.adapters.kinds import kind_of
from services.health.model import ProbeFailed, Role, Target
from shared.bus.nats_address import NatsAddress, parse_address

LINE_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 256 * 1024
LINES_MAX = 20
"""Before the answer come INFO, perhaps PING, and little else."""

INBOX = "_INBOX.roundhouse-health"


class NatsProbe:
    """Every check is a new connection; of a cluster's servers the first that takes us in decides."""

    def __init__(self, url: str) -> None:
        self._address: NatsAddress = parse_address(url)
        self.target = Target("nats", Role.REQUIRED)

    async def check(self) -> None:
        failure: BaseException | None = None
        for server in self._address.servers:
            try:
                await self._ask(server)
                return
            except (OSError, EOFError, ValueError, ProbeFailed) as error:
                failure = error
        assert failure is not None
        if isinstance(failure, ProbeFailed):
            raise failure
        raise ProbeFailed("garbage" if isinstance(failure, ValueError) else kind_of(failure)) from failure

    async def _ask(self, server: str) -> None:
        parts = urlsplit(server)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=LINE_BYTES_MAX)
        try:
            info = _info_of(await reader.readline())
            if parts.scheme == "tls" or info.get("tls_required"):
                await writer.start_tls(ssl.create_default_context(), server_hostname=parts.hostname)
            writer.write(self._greeting() + b"PING\r\n")
            await _jetstream_answer(reader, writer)
        finally:
            writer.transport.abort()  # nothing is left to say, and a hanging server must not hold us

    def _greeting(self) -> bytes:
        options: dict[str, object] = {
            "verbose": False,
            "pedantic": False,
            "name": "roundhouse-health",
            "lang": "python",
            "version": "1",
            "headers": True,
            "no_responders": True,
        }
        found = self._address.options
        if "token" in found:
            options["auth_token"] = found["token"]
        else:
            options |= {{"user": "user", "password": "pass"}[name]: value for name, value in found.items()}
        return (
            b"CONNECT " + orjson.dumps(options) + b"\r\n"
            b"SUB %b 1\r\nPUB $JS.API.INFO %b 0\r\n\r\n" % (INBOX.encode(), INBOX.encode())
        )

    async def close(self) -> None:
        """Nothing is kept."""


def _info_of(line: bytes) -> dict[str, object]:
    if not line:
        raise EOFError
    if not line.startswith(b"INFO "):
        raise ProbeFailed("garbage")
    info = orjson.loads(line[5:])
    if not isinstance(info, dict):
        raise ProbeFailed("garbage")
    return info


async def _jetstream_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read until JetStream has answered. Raises ProbeFailed."""
    for _ in range(LINES_MAX):
        line = await reader.readline()
        if not line:
            raise EOFError
        word, _, rest = line.partition(b" ")
        if word.startswith(b"PING"):
            writer.write(b"PONG\r\n")
        elif word == b"-ERR":
            raise ProbeFailed("auth" if b"uthorization" in rest or b"uthentication" in rest else "error")
        elif word == b"HMSG":
            raise ProbeFailed("no_jetstream")  # the server's "no responders"
        elif word == b"MSG":
            size = int(rest.split()[-1])
            if size > ANSWER_BYTES_MAX:
                raise ProbeFailed("garbage")
            answer = orjson.loads(await reader.readexactly(size))
            if not isinstance(answer, dict) or answer.get("error"):
                raise ProbeFailed("no_jetstream")
            return
    raise ProbeFailed("garbage")
