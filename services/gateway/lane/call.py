"""One request on its way through the policies: what they read, what they note for each other and for the log."""

import asyncio
import re
import time
from typing import NamedTuple, Protocol

from starlette.types import Scope

from services.gateway.domain.addresses import AddressBook
from services.gateway.domain.retrying import may_repeat
from services.gateway.domain.route_limits import LimitOutcome
from services.gateway.lane.compress import Compression
from services.gateway.lane.cors import CorsPolicy
from services.gateway.lane.head import Headers, RequestHead
from services.gateway.model import GatewayConfig
from shared import ids
from shared.context import RequestContext
from shared.deadline import HEADER as DEADLINE_HEADER
from shared.deadline import Deadline
from shared.tokens import Identity

_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
NOSNIFF = (b"x-content-type-options", b"nosniff")
DEADLINE = DEADLINE_HEADER.lower().encode()


class RequestLine(NamedTuple):
    """What a request says beside its headers, and where it came from.

    `kind` is http or websocket, `path` the decoded path, `raw_path` and `query` the bytes as they came, `peer` the other end's
    address or "".
    """

    kind: str
    method: str
    path: str
    raw_path: bytes
    query: bytes
    scheme: str
    peer: str

    @classmethod
    def of_scope(cls, scope: Scope) -> "RequestLine":
        """Return the request line of an ASGI scope."""
        return cls(
            scope["type"],
            scope.get("method", "WEBSOCKET"),
            scope["path"],
            scope["raw_path"],
            scope["query_string"],
            scope["scheme"],
            scope["client"][0] if scope["client"] else "",
        )


class Plans(Protocol):
    """The configuration that a call is served by, as far as it matters after its route was found."""

    @property
    def config(self) -> GatewayConfig: ...
    @property
    def addresses(self) -> AddressBook: ...
    @property
    def cors(self) -> CorsPolicy: ...
    @property
    def compression(self) -> Compression: ...


class Call(RequestContext):
    """A request as the policies see it, and the context that it is served in (shared.context).

    `peer` is the other end of the socket, `client` who really asks. `due_at` is when the answer must be there (monotonic seconds).
    `added` are headers that every answer carries, the service's own or a refusal. `plans` is the configuration it is served by.
    `status` stays 0 until an answer begins; `body_bytes` counts what went to the client. `ended_at` is set before the policies hear
    that it is over.
    """

    __slots__ = (
        "added",
        "body_bytes",
        "client",
        "draining",
        "due_at",
        "ended_at",
        "head",
        "identity",
        "kind",
        "limits",
        "method",
        "path",
        "peer",
        "plans",
        "query",
        "raw_path",
        "scheme",
        "started_at",
        "status",
    )

    def __init__(self, head: RequestHead, line: RequestLine, plans: Plans, draining: asyncio.Event) -> None:
        self.started_at = time.monotonic()
        self.head = head
        self.plans = plans
        self.draining = draining
        self.kind, self.method, self.path, self.raw_path, self.query, self.scheme, self.peer = line
        self.client = plans.addresses.find(self.peer, head.forwarded_for)
        self.limits: LimitOutcome | None = None
        self.identity: Identity | None = None
        self.due_at = self.ended_at = 0.0
        self.status = 0
        self.body_bytes = 0
        self.subject = self.route = ""
        # Made only where a task serves the call: what that runs may ask for it.
        self.deadline = None
        given = head.request_id.decode("latin-1") if head.request_id else ""
        self.request_id = given if given and ids.is_request_id(given) else ids.new_request_id()
        trace = head.traceparent
        self.traceparent = trace.decode() if trace and _TRACEPARENT.fullmatch(trace) else ids.new_traceparent()
        # As `own_headers`, without the call.
        self.added: Headers = [
            (b"x-request-id", self.request_id.encode()),
            NOSNIFF,
            *plans.cors.answer_headers(head.origin),
        ]

    @property
    def own_headers(self) -> Headers:
        """What every answer of the gateway says."""
        return [(b"x-request-id", self.request_id.encode()), NOSNIFF]

    @property
    def target(self) -> bytes:
        """The request's target, byte for byte."""
        return self.raw_path + b"?" + self.query if self.query else self.raw_path

    @property
    def may_repeat(self) -> bool:
        """Whether a request that may have reached the service can be sent again."""
        return may_repeat(self.method, has_idempotency_key=bool(self.head.idempotency_key))

    def set_deadline(self, timeout_s: float) -> None:
        """Set when the answer is due: after the route's total, or sooner where the client asked so."""
        self.due_at = self.started_at + timeout_s
        if self.head.timeout_ms:
            asked = Deadline.from_header(self.head.timeout_ms.decode("latin-1"))
            if asked is not None and asked.at < self.due_at:
                self.due_at = asked.at
