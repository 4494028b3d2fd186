"""What all client connections share: their limits, one clock for all of them, and refusals of what never became a request."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import orjson
import structlog

from services.gateway.lane.cycle import status_line
from services.gateway.lane.head import Headers
from services.gateway.lane.outbox import Outbox
from shared.errors import PROBLEM_MEDIA_TYPE, Problem
from shared.ids import is_request_id, new_request_id
from shared.metrics import UNMATCHED, Metrics

MIB = 1024 * 1024

SWEEP_S = 0.25
"""How late a client's deadline may be noticed: a look at 10,000 connections each 50 ms would cost 2 % of a core."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a client's connection, in seconds and bytes.

    `head_s` runs from a head's first byte to its last. `body_s` is the time for each MiB that has begun, so for a body of up to
    1 MiB in all. `idle_s` is longer than the 60 s of the usual load balancers, so that they and not this side end what they keep; a
    connection over the number allowed has `surplus_s`. A client that was refused is listened to for `linger_s` more.
    """

    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    surplus_s: float = 1.0
    linger_s: float = 2.0
    linger_bytes: int = 16 * MIB
    pipelined: int = 16


class Refusal(NamedTuple):
    """A request that was refused before there was a request; `client` is the peer's address, "" where it is unknown."""

    status: int
    code: str
    client: str
    request_id: str


class Watched(Protocol):
    """A client's connection as the clock sees it: `on_tick` gets the monotonic time and the seconds since the last call."""

    def on_tick(self, now: float, elapsed_s: float) -> None: ...


def _ignore(_: Refusal) -> None:
    return


@dataclass(slots=True)
class Front:
    """Shared by the connections of one gateway. `on_refused` hears of each refusal that the application never sees."""

    connections_max: int
    on_refused: Callable[[Refusal], None] = _ignore
    limits: Limits = field(default_factory=Limits)
    outbox: Outbox = field(default_factory=Outbox)
    connections: set[Watched] = field(default_factory=set)
    _looked_at: float = 0.0

    def on_tick(self, now: float) -> None:
        """Look at every connection, four times a second; see Sweeper."""
        elapsed_s = now - self._looked_at
        if elapsed_s < SWEEP_S:
            return
        self._looked_at = now
        for connection in tuple(self.connections):
            connection.on_tick(now, min(elapsed_s, 1.0))

    def refuse(
        self, problem: Problem, *, client: str, method: bytes, target: bytes, read: Headers, added: Headers
    ) -> bytes:
        """Report a refusal and return the bytes of the answer, after which the connection ends.

        `method`, `target` and `read` are what is known of the request's first line and headers; `added` are headers of every answer.
        """
        named = next((value.decode("latin-1") for name, value in read if name == b"x-request-id"), "")
        request_id = named if is_request_id(named) else new_request_id()
        path = target.partition(b"?")[0][:512].decode("latin-1")
        body = orjson.dumps(problem.document(instance=path, request_id=request_id))
        headers: Headers = [
            *added,
            *((name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items()),
            (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        self.on_refused(Refusal(problem.status, problem.problem_code, client, request_id))
        fields = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return b"%b%b\r\n%b" % (status_line(problem.status), fields, b"" if method == b"HEAD" else body)


def reporter(metrics: Metrics) -> Callable[[Refusal], None]:
    """Return an `on_refused` that counts refusals and writes the line that each request has."""
    log = structlog.get_logger()

    def report(refusal: Refusal) -> None:
        metrics.requests.of("", UNMATCHED).count(refusal.status)
        log.info("request", route=UNMATCHED, **refusal._asdict())

    return report
