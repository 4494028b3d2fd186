"""The request as the upstream sees it: its own Host, the client's headers as they came, and what only the gateway may say."""

from starlette.types import Scope

from services.gateway.lane.head import Headers, RequestHead
from shared import context
from shared.deadline import Deadline
from shared.endpoints import Address


def authority_of(address: Address) -> str:
    """Return `host:port`, an IPv6 host in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def target_of(scope: Scope) -> bytes:
    """Return the request's target, byte for byte."""
    raw_path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return raw_path + b"?" + query if query else raw_path


def forwarding_headers(scope: Scope, head: RequestHead) -> Headers:
    """Return who asked, by what name and how, and the ids of the request; whatever the client said of these was dropped."""
    headers: Headers = []
    if scope["client"]:
        headers.append((b"x-forwarded-for", scope["client"][0].encode()))
    headers.append((b"x-forwarded-proto", b"https" if scope["scheme"] in ("https", "wss") else b"http"))
    if head.host:
        headers.append((b"x-forwarded-host", head.host))
    found = context.current()
    if found is not None:
        headers.append((b"x-request-id", found.request_id.encode()))
        headers.append((b"traceparent", found.traceparent.encode()))
    return headers


def request_head(scope: Scope, head: RequestHead, *, address: Address, deadline: Deadline | None) -> bytes:
    """Return the bytes of the request's head for one upstream."""
    parts = [scope["method"].encode(), b" ", target_of(scope), b" HTTP/1.1\r\nhost: ", authority_of(address).encode()]
    for name, value in head.passed:
        parts += (b"\r\n", name, b": ", value)
    for name, value in forwarding_headers(scope, head):
        parts += (b"\r\n", name, b": ", value)
    if deadline is not None:
        parts += (b"\r\nx-request-timeout-ms: ", deadline.header_value().encode())
    if head.is_chunked:
        parts.append(b"\r\ntransfer-encoding: chunked")
    elif head.length is not None:
        parts += (b"\r\ncontent-length: ", str(head.length).encode())
    parts.append(b"\r\n\r\n")
    return b"".join(parts)
