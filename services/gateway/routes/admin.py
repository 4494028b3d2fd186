"""Operating the gateway: what it does now, breakers and replicas held by hand, the configuration read again; in all workers.

Every action leaves an audit line. Who may: an admin's token, or anybody on this machine where the settings say so.
"""

from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Query, Request

from services.gateway.domain.addresses import AddressBook
from services.gateway.domain.admission import admit
from services.gateway.domain.config import check
from services.gateway.domain.explain import Asker, Explanation, explain, explain_route
from services.gateway.domain.reloading import Configuration
from services.gateway.workers.everyone import View, Workers
from shared.errors import NotFound
from shared.identity import bearer_of
from shared.tokens import TokenVerifier

PREFIX = "/admin/gateway"
FORWARDED_BY = frozenset(
    {
        "forwarded",
        "via",
        "x-real-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-original-forwarded-for",
        "true-client-ip",
        "cf-connecting-ip",
        "fastly-client-ip",
    }
)
"""With all that begin with `x-forwarded`: what proxies add. Each says that somebody else asks, whether what it says is true or not."""


Verb = Literal["open", "close", "auto"]


class Door:
    """Finds out who asks: the subject of a token, or "loopback". Raises Unauthorized, Forbidden, NotFound where it is off."""

    def __init__(
        self,
        verifier: TokenVerifier,
        configuration: Configuration,
        access: Literal["loopback_or_admin", "admin", "off"],
    ) -> None:
        self._verifier = verifier
        self._configuration = configuration
        self._access = access

    async def __call__(self, request: Request) -> str:
        if self._access == "off":
            raise NotFound
        # Of the configuration of the moment: a reload may have named a proxy.
        if self._access == "loopback_or_admin" and is_local(request, AddressBook(self._configuration.used.addresses)):
            return "loopback"
        identity = await admit(self._verifier, bearer_of(request.headers.get("authorization", "")), "admin")
        return identity.subject


def is_local(request: Request, book: AddressBook) -> bool:
    """Say whether somebody on this machine asks, and not a page or a proxy there.

    The socket's other end must be this machine. A trusted proxy speaks for somebody else even where it does not say so, and a
    proxy's header says it of any other. Pages are kept out by `Host`, which has the page's name where that was made to point here
    (DNS rebinding), and by `Origin` and `Sec-Fetch-Site`.
    """
    client = book.find(request.client.host if request.client else "")
    if client.is_relayed or not client.address or not ip_address(client.address).is_loopback:
        return False
    if any(name in FORWARDED_BY or name.startswith("x-forwarded") for name in request.headers):
        return False
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if not _is_own_name(host) or (origin is not None and origin != f"http://{host}"):
        return False
    return request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _is_own_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def admin(door: Door, workers: Workers, configuration: Configuration, authorities: frozenset[str]) -> APIRouter:
    """Return the routes."""
    router = APIRouter()
    router.include_router(_views(workers, configuration, authorities), dependencies=[Depends(door)])
    router.include_router(_actions(door, workers))
    return router


def _views(workers: Workers, configuration: Configuration, authorities: frozenset[str]) -> APIRouter:
    # Here and not where it is included: logs and metrics name a route by its own path.
    router = APIRouter(prefix=PREFIX)

    @router.get("/routes", summary="Every route with its policies, outermost first")
    async def routes() -> list[Explanation]:
        return [explain_route(configuration.used, route) for route in configuration.used.routes]

    @router.get("/explain", summary="What would become of a request, and why")
    async def explained(
        method: Annotated[str, Query(max_length=16)],
        path: Annotated[str, Query(max_length=2048)],
        role: Annotated[str | None, Query(max_length=64)] = None,
        tier: Annotated[str, Query(max_length=64)] = "",
        host: Annotated[str, Query(max_length=255)] = "",
    ) -> Explanation:
        config = configuration.used
        asker = Asker(role=role, tier=tier, host=host)
        return explain(config, check(config), method.upper(), path, asker, authorities=authorities)

    @router.get("/instances", summary="Every service's replicas with their load and breakers")
    async def instances() -> View:
        return await workers.view("services")

    @router.get("/breakers", summary="Every service's circuit breaker and those of its replicas")
    async def breakers() -> View:
        found = await workers.view("services")
        kept = ("breaker", "held")
        return {
            "workers": found["workers"],
            "services": {
                name: {key: service[key] for key in kept}
                | {"replicas": {item["address"]: {key: item[key] for key in kept} for item in service["replicas"]}}
                for name, service in found["services"].items()
            },
        }

    @router.get("/limits", summary="The rate limits, and what is leased of them")
    async def limits() -> View:
        return {
            "configured": [limit.model_dump(mode="json") for limit in configuration.used.limits],
            **await workers.view("limits"),
        }

    @router.get("/in-flight", summary="Requests under way, the oldest first")
    async def in_flight() -> View:
        found = await workers.view("in_flight")
        found["in_flight"]["requests"].sort(key=lambda item: -item["age_s"])
        return found

    return router


def _actions(door: Door, workers: Workers) -> APIRouter:
    # Here and not where it is included: logs and metrics name a route by its own path.
    router = APIRouter(prefix=PREFIX)
    who = Depends(door)

    @router.post("/breakers/{service}/{verb}", summary="Hold a service's breakers open or closed, or let them decide")
    async def hold(service: str, verb: Verb, operator: Annotated[str, who]) -> View:
        return await workers.act(operator, f"{verb}_breaker", service=service)

    @router.post("/breakers/{service}/{address}/{verb}", summary="The same for one replica (host:port)")
    async def hold_one(service: str, address: str, verb: Verb, operator: Annotated[str, who]) -> View:
        return await workers.act(operator, f"{verb}_breaker", service=service, address=address)

    @router.post("/instances/{service}/{address}/drain", summary="Send a replica (host:port) no new request")
    async def drain(service: str, address: str, operator: Annotated[str, who], force: bool = False) -> View:
        return await workers.act(operator, "drain", service=service, address=address, force=force)

    @router.post("/instances/{service}/{address}/undrain", summary="Send a replica requests again")
    async def undrain(service: str, address: str, operator: Annotated[str, who]) -> View:
        return await workers.act(operator, "undrain", service=service, address=address)

    @router.post("/reload", summary="Read the configuration's file again")
    async def reload(operator: Annotated[str, who]) -> View:
        return await workers.act(operator, "reload")

    return router
