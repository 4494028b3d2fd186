"""Calls to other services and external APIs: bounded, carrying the request's id, trace and deadline along."""

import asyncio
import json
import random
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from shared import context
from shared.deadline import bounded_s
from shared.endpoints import Endpoints
from shared.errors import Unavailable

CALL_TIMEOUT_S = 2.0
CONNECTIONS_MAX = 100
RESPONSE_BYTES_MAX = 1024 * 1024
TRIES_MAX = 3


def open_client(*, timeout_s: float = CALL_TIMEOUT_S) -> httpx2.AsyncClient:
    """Return a client for side calls; the environment's proxies are ignored, since it speaks to neighbours."""
    return httpx2.AsyncClient(
        # Neighbours speak plain HTTP: without the public authorities a process saves 3.4 MiB and 30 ms, and trusts no TLS peer.
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        timeout=timeout_s,
        limits=httpx2.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=20, keepalive_expiry=20),
        trust_env=False,
        follow_redirects=False,
    )


async def get_json(client: httpx2.AsyncClient, endpoints: Endpoints, service: str, path: str) -> Any:
    """GET a JSON document from any replica of a service, trying up to three. Raises Unavailable when none answers with 200."""
    addresses = list(endpoints.of(service))
    random.shuffle(addresses)
    for host, port in addresses[:TRIES_MAX]:
        host_text = f"[{host}]" if ":" in host else host
        try:
            async with asyncio.timeout(bounded_s(context.deadline(), CALL_TIMEOUT_S)):
                body = await _get(client, f"http://{host_text}:{port}{path}")
            if body is not None:
                return json.loads(body)
        except (httpx2.HTTPError, TimeoutError, ValueError, RecursionError):
            continue
    raise Unavailable(f"no replica of {service} answers", code="service_unavailable")


async def _get(client: httpx2.AsyncClient, url: str) -> bytes | None:
    """Return the body of a 200, None for another answer or a body over the limit, of which no more than that is read."""
    # Plain: a small body could become a large one.
    headers = {**context.outgoing_headers(), "Accept-Encoding": "identity"}
    async with client.stream("GET", url, headers=headers) as response:
        if response.status_code != 200 or "content-encoding" in response.headers:
            return None
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > RESPONSE_BYTES_MAX:
                return None
        return bytes(body)


class JwksOverHttp:
    """The public keys of the issuer, fetched from any replica of it; a KeySource."""

    def __init__(self, client: httpx2.AsyncClient, endpoints: Endpoints, service: str, path: str) -> None:
        self._client = client
        self._endpoints = endpoints
        self._service = service
        self._path = path

    async def fetch(self) -> Sequence[Mapping[str, Any]]:
        """Return the JWKs. Raises Unavailable."""
        document = await get_json(self._client, self._endpoints, self._service, self._path)
        keys = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
            raise Unavailable("the issuer's keys are not readable", code="service_unavailable")
        return keys
