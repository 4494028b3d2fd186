"""The request as the upstream sees it: its own Host, the client's headers as they came, and what only the gateway may say."""

import time
from functools import lru_cache

from services.gateway.lane.call import Call
from services.gateway.lane.head import FIELD, Headers, RequestHead
from shared.endpoints import Address


def authority_of(address: Address) -> bytes:
    """Return `host:port`, an IPv6 host in brackets."""
    host, port = address
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()


def forwarding_headers(call: Call) -> Headers:
    """Return who asked, by what name and how, and the ids of the request; whatever the client said of these was dropped."""
    head = call.head
    headers = _who(call.peer, call.scheme)
    if call.client.is_relayed:
        headers = _relayed(headers, head)
    if head.host:
        headers = [*headers, (b"x-forwarded-host", head.host)]
    return [*headers, (b"x-request-id", call.request_id.encode()), (b"traceparent", call.traceparent.encode())]


@lru_cache(maxsize=4096)
def _who(peer: str, scheme: str) -> Headers:
    """Return who asked and how; the list is shared: copy, never change it."""
    how = (b"x-forwarded-proto", b"https" if scheme in ("https", "wss") else b"http")
    return [(b"x-forwarded-for", peer.encode()), how] if peer else [how]


@lru_cache(maxsize=4096)
def _who_lines(peer: str, scheme: str, host: bytes) -> bytes:
    """Return who asked, how and by what name as the lines of a head."""
    named = [(b"x-forwarded-host", host)] if host else []
    return b"".join(b"%b: %b\r\n" % pair for pair in (*_who(peer, scheme), *named))


def _relayed(headers: Headers, head: RequestHead) -> Headers:
    """Return the same of a request that came by a trusted proxy: its list is carried on, anybody else's was written by the client."""
    found = dict(headers)
    if head.forwarded_for and b"x-forwarded-for" in found:
        found[b"x-forwarded-for"] = head.forwarded_for + b", " + found[b"x-forwarded-for"]
    if head.forwarded_proto in (b"http", b"https"):
        found[b"x-forwarded-proto"] = head.forwarded_proto
    return list(found.items())


def request_head(call: Call, *, authority: bytes, has_deadline: bool) -> bytes:
    """Return the bytes of the request's head for one upstream; `has_deadline` tells it how long the answer is waited for."""
    head = call.head
    lines = [b"%b %b HTTP/1.1\r\nhost: %b" % (call.method.encode(), call.target, authority), *map(FIELD, head.passed)]
    if call.client.is_relayed:
        lines += map(FIELD, forwarding_headers(call))
    else:
        # As `forwarding_headers`, of which most is the same for all requests of a client.
        ids = (call.request_id.encode(), call.traceparent.encode())
        lines.append(_who_lines(call.peer, call.scheme, head.host) + b"x-request-id: %b\r\ntraceparent: %b" % ids)
    if has_deadline:
        lines.append(b"x-request-timeout-ms: %d" % max(0, int((call.due_at - time.monotonic()) * 1000)))
    if head.is_chunked:
        lines.append(b"transfer-encoding: chunked")
    elif head.length is not None:
        lines.append(b"content-length: %d" % head.length)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)
