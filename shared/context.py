"""The request being served: its id, trace, deadline and subject, set in one place and readable everywhere below."""

from contextvars import ContextVar, Token
from dataclasses import dataclass

from shared.deadline import Deadline


@dataclass(slots=True)
class RequestContext:
    """`subject` is filled in once the access token is verified; it goes to logs, never to decisions.

    `forwarded_for` is the header as it came, `peer` the address of the connection; who may be believed, a service knows.
    """

    request_id: str
    traceparent: str = ""
    deadline: Deadline | None = None
    subject: str = ""
    route: str = ""
    forwarded_for: str = ""
    peer: str = ""


_current: ContextVar[RequestContext | None] = ContextVar("roundhouse_request", default=None)


def current() -> RequestContext | None:
    """Return the context of the request being served, None outside of one."""
    return _current.get()


def enter(context: RequestContext) -> Token[RequestContext | None]:
    """Make `context` the current one; the token goes to leave."""
    return _current.set(context)


def leave(token: Token[RequestContext | None]) -> None:
    _current.reset(token)


def deadline() -> Deadline | None:
    """Return the deadline of the request being served, None where there is none."""
    found = _current.get()
    return found.deadline if found else None


def outgoing_headers() -> dict[str, str]:
    """Return what goes along to the next hop: request id, trace and what is left of the deadline."""
    found = _current.get()
    if found is None:
        return {}
    headers = {"X-Request-ID": found.request_id}
    if found.traceparent:
        headers["traceparent"] = found.traceparent
    if found.deadline is not None:
        headers["X-Request-Timeout-Ms"] = found.deadline.header_value()
    return headers
