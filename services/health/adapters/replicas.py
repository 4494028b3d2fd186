"""Probes of replicas: `GET /ready` on every address that is known."""

import httpx2
import orjson

from services.health.adapters.kinds import kind_of
from services.health.model import ProbeFailed, Role, Target
from shared.endpoints import Address, Endpoints

ANSWER_BYTES_MAX = 16 * 1024
CONNECTIONS_MAX = 512


def open_client(*, timeout_s: float) -> httpx2.AsyncClient:
    """Return the client of the probes; a new connection for each, so that a replica that accepts none is found."""
    return httpx2.AsyncClient(
        timeout=timeout_s,
        limits=httpx2.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0),
        trust_env=False,
        follow_redirects=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "roundhouse-health"},
    )


def replica_probes(endpoints: Endpoints, client: httpx2.AsyncClient) -> list["ReplicaProbe"]:
    """Return a probe for each replica of each service, named by its place in the list: users-1, users-2."""
    return [
        ReplicaProbe(client, service, f"{service}-{index}", address)
        for service, addresses in endpoints.services.items()
        for index, address in enumerate(addresses, 1)
    ]


class ReplicaProbe:
    """Ready is an answer 200 that says so; anything else is not."""

    def __init__(self, client: httpx2.AsyncClient, service: str, label: str, address: Address) -> None:
        host, port = address
        self._client = client
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}/ready"
        self.target = Target(service, Role.REPLICA, key=f"{host}:{port}", label=label)

    async def check(self) -> None:
        try:
            async with self._client.stream("GET", self._url) as response:
                state = _state_of(await _beginning(response))
        except httpx2.TimeoutException as error:
            raise ProbeFailed("timeout") from error
        except httpx2.RemoteProtocolError as error:
            raise ProbeFailed("garbage") from error
        except httpx2.HTTPError as error:
            raise ProbeFailed(kind_of(error)) from error
        if response.status_code == 200 and state == "ready":
            return
        if response.status_code == 503:
            raise ProbeFailed("draining" if state == "draining" else "not_ready")
        raise ProbeFailed("garbage" if response.status_code == 200 else f"status_{response.status_code}")


async def _beginning(response: httpx2.Response) -> bytes:
    """Read the answer as it came, no further than it may be long."""
    found = b""
    async for part in response.aiter_raw():
        found += part
        if len(found) > ANSWER_BYTES_MAX:
            raise ProbeFailed("garbage")
    return found


def _state_of(body: bytes) -> str:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    state = document.get("state") if isinstance(document, dict) else ""
    return state if isinstance(state, str) else ""
