"""The request as the upstream sees it: its own Host, the client's headers as they came, and what only the gateway may say."""

import time

from services.gateway.lane.call import Call
from services.gateway.lane.head import Headers
from shared.endpoints import Address


def authority_of(address: Address) -> bytes:
    """Return `host:port`, an IPv6 host in brackets."""
    host, port = address
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()


def forwarding_headers(call: Call) -> Headers:
    """Return who asked, by what name and how, and the ids of the request; whatever the client said of these was dropped."""
    headers: Headers = []
    head, is_relayed = call.head, call.client.is_relayed
    if call.peer:
        peer = call.peer.encode()
        # A trusted proxy's list is carried on, anybody else's was written by the client.
        chain = head.forwarded_for + b", " + peer if is_relayed and head.forwarded_for else peer
        headers.append((b"x-forwarded-for", chain))
    scheme = b"https" if call.scheme in ("https", "wss") else b"http"
    if is_relayed and head.forwarded_proto in (b"http", b"https"):
        scheme = head.forwarded_proto
    headers.append((b"x-forwarded-proto", scheme))
    if head.host:
        headers.append((b"x-forwarded-host", head.host))
    headers.append((b"x-request-id", call.context.request_id.encode()))
    headers.append((b"traceparent", call.context.traceparent.encode()))
    return headers


def request_head(call: Call, *, authority: bytes, has_deadline: bool) -> bytes:
    """Return the bytes of the request's head for one upstream; `has_deadline` tells it how long the answer is waited for."""
    head = call.head
    parts = [call.method.encode(), b" ", call.target, b" HTTP/1.1\r\nhost: ", authority]
    for name, value in head.passed:
        parts += (b"\r\n", name, b": ", value)
    for name, value in forwarding_headers(call):
        parts += (b"\r\n", name, b": ", value)
    if has_deadline:
        left_ms = max(0, int((call.due_at - time.monotonic()) * 1000))
        parts += (b"\r\nx-request-timeout-ms: ", str(left_ms).encode())
    if head.is_chunked:
        parts.append(b"\r\ntransfer-encoding: chunked")
    elif head.length is not None:
        parts += (b"\r\ncontent-length: ", str(head.length).encode())
    parts.append(b"\r\n\r\n")
    return b"".join(parts)
