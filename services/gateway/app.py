"""Assembly of the gateway: the lane in front, its own control side behind, and what both need while it runs."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import httpx2
from starlette.types import ASGIApp

from services.gateway.adapters.quota import open_quota_store
from services.gateway.domain.catalogue import Catalogue
from services.gateway.domain.documents import Own
from services.gateway.domain.limiting import Limiter
from services.gateway.domain.reloading import Configuration
from services.gateway.domain.tickets import Tickets
from services.gateway.lane.access import AccessLog
from services.gateway.lane.chain import Chain
from services.gateway.lane.direct import direct_protocol_of
from services.gateway.lane.entry import Lane
from services.gateway.lane.exchange import Machinery
from services.gateway.lane.front import Front, reporter
from services.gateway.lane.operating import Operating
from services.gateway.lane.pool import Pool
from services.gateway.lane.server import protocol_of
from services.gateway.lane.sweeper import Sweeper
from services.gateway.lane.upstream_metrics import UpstreamMetrics
from services.gateway.lane.upstreams import Upstreams
from services.gateway.lane.websocket import WebSocketProxy
from services.gateway.model import GatewayConfig
from services.gateway.routes.admin import Door, admin
from services.gateway.routes.metrics import MetricsGuard
from services.gateway.routes.portal import portal
from services.gateway.settings import GatewaySettings
from services.gateway.workers import exposition
from services.gateway.workers.everyone import VERB, Workers
from services.gateway.workers.seat import Seat
from services.gateway.workers.siblings import Siblings
from shared import log
from shared.app import Application, Opened, Runtime, build
from shared.bus.connect import connected
from shared.cache.connect import connect as connect_cache
from shared.endpoints import Address, Endpoints
from shared.http import JwksOverHttp, get_json, open_client
from shared.revocation import follow
from shared.serve import open_sockets, read, run
from shared.settings import load
from shared.tokens import TokenVerifier

ISSUER_SERVICE = "users"
ISSUER_PATH = "/.well-known/jwks.json"
DOCUMENT_PATH = "/openapi.json"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the gateway has open while it runs."""

    endpoints: Endpoints
    verifier: TokenVerifier
    tickets: Tickets
    pool: Pool
    upstreams: Upstreams
    sweeper: Sweeper
    clients: Front
    access_log: AccessLog
    siblings: Siblings
    configuration: Configuration
    limiter: Limiter
    catalogue: Catalogue
    websockets: WebSocketProxy
    operating: Operating


def create(settings: GatewaySettings, seat: Seat | None = None) -> Application:
    """Return the gateway's application; `seat` is its place among several workers."""
    client = open_client()
    parts = _parts(settings, client, seat.siblings if seat else Siblings())
    parts.siblings.on(VERB, parts.operating.answer)
    workers = Workers(parts.operating, parts.siblings, tell_parent=seat.tell_reloaded if seat else None)

    def guard(app: ASGIApp) -> ASGIApp:
        return MetricsGuard(app, parts.verifier, auth=settings.metrics_auth, private_port=settings.private_port)

    lanes: list[Lane] = []

    def front(app: ASGIApp, runtime: Runtime) -> ASGIApp:
        lanes.append(_lane(app, settings, parts, runtime))
        return lanes[0]

    app = build(
        settings,
        routers=[
            portal(parts.catalogue),
            admin(
                Door(parts.verifier, parts.configuration, settings.operated_by),
                workers,
                parts.configuration,
                settings.authority_names,
            ),
        ],
        resources=lambda _, runtime: _open(settings, runtime, client, parts, seat, workers),
        title="Roundhouse gateway",
        wrap=guard,
        front=front,
        # The portal answers with that of the whole platform.
        openapi_url=None,
        shows_probes=True,
    )
    parts.catalogue.own = lambda: Own(app.fastapi.openapi(), settings.metrics_auth)
    app.runtime.metrics.registry.register(workers.actions)
    parts.clients.on_refused = reporter(app.runtime.metrics)
    app.http_protocol = (
        direct_protocol_of(lanes[0], parts.clients) if settings.lane == "direct" else protocol_of(parts.clients)
    )
    return app


@asynccontextmanager
async def _open(
    settings: GatewaySettings,
    runtime: Runtime,
    client: httpx2.AsyncClient,
    parts: Parts,
    seat: Seat | None,
    workers: Workers,
) -> AsyncIterator[Opened[Parts]]:
    """Run what the parts need in the background."""
    endpoints, pool = parts.endpoints, parts.pool

    async def check_endpoints() -> None:
        if not endpoints.services:
            raise ConnectionError("no replica of any service is known")

    def forget_vanished() -> None:
        pool.keep_only(_known(endpoints))

    endpoints.on_change.append(forget_vanished)
    async with client:
        await endpoints.refresh()
        runtime.tasks.start("endpoints", endpoints.watch)
        draining, wait_s = runtime.readiness.draining, settings.drain_wait_s
        runtime.tasks.start("sweeper", partial(parts.sweeper.run, draining, drain_wait_s=wait_s))
        runtime.tasks.start("limits", parts.limiter.run)
        runtime.tasks.start("configuration", parts.configuration.watch)
        runtime.tasks.start("catalogue", parts.catalogue.run)
        nats_url = settings.nats_url.get_secret_value()
        await follow(
            runtime.tasks,
            parts.verifier,
            lambda: connected(nats_url, name=settings.replica_name),
            issuer=ISSUER_SERVICE,
        )
        with _on_hangup(parts.configuration.want):
            if seat is not None:
                _join(seat, runtime)
                # Before it serves: what an operator keeps from a service must not get a request from the one worker that does not know.
                await workers.inherit()
            try:
                yield Opened(parts, {"endpoints": check_endpoints})
            finally:
                pool.close()
                await parts.limiter.close()
                await parts.tickets.close()
                parts.access_log.flush()


def _parts(settings: GatewaySettings, client: httpx2.AsyncClient, siblings: Siblings) -> Parts:
    endpoints = Endpoints(settings.endpoints)
    pool = Pool()
    access_log = AccessLog()
    clients = Front(settings.connections_max)
    configuration = Configuration(settings.read_config(settings.config), settings.read_config_file)
    sweeper = Sweeper(pool, [access_log, clients])
    upstreams = Upstreams(endpoints)
    limiter = Limiter(open_quota_store(settings.redis_url.get_secret_value()))
    websockets = WebSocketProxy(upstreams)
    verifier = TokenVerifier(JwksOverHttp(client, endpoints, ISSUER_SERVICE, ISSUER_PATH))
    return Parts(
        endpoints=endpoints,
        verifier=verifier,
        tickets=Tickets(verifier, connect_cache(settings.redis_url.get_secret_value())),
        pool=pool,
        upstreams=upstreams,
        sweeper=sweeper,
        clients=clients,
        access_log=access_log,
        siblings=siblings,
        configuration=configuration,
        limiter=limiter,
        catalogue=Catalogue(
            lambda service: get_json(client, endpoints, service, DOCUMENT_PATH), lambda: configuration.used
        ),
        websockets=websockets,
        operating=Operating(upstreams, configuration, limiter, sweeper, websockets, pool),
    )


def _lane(app: ASGIApp, settings: GatewaySettings, parts: Parts, runtime: Runtime) -> Lane:
    compile_plans = Chain(
        upstreams=parts.upstreams,
        verifier=parts.verifier,
        tickets=parts.tickets,
        access_log=parts.access_log,
        metrics=runtime.metrics,
        limiter=parts.limiter,
    )
    config = parts.configuration.used
    parts.upstreams.reconfigure(config.services)
    lane = Lane(
        app,
        compile_plans(config),
        machinery=Machinery(parts.pool, parts.upstreams, parts.sweeper),
        websockets=parts.websockets,
        draining=runtime.readiness.draining,
        authorities=settings.authority_names,
    )
    UpstreamMetrics(runtime.metrics.registry, parts.upstreams)

    def swap(config: GatewayConfig) -> None:
        plans = compile_plans(config)
        parts.upstreams.reconfigure(config.services)
        lane.reconfigure(plans)

    parts.configuration.swap = swap
    return lane


@contextmanager
def _on_hangup(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` at each SIGHUP, where there is that signal and this thread may hear of it."""
    if not hasattr(signal, "SIGHUP") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGHUP)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, tell)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)


def _join(seat: Seat, runtime: Runtime) -> None:
    """Act as one of several workers from here on; the last thing before the service serves."""

    async def own() -> bytes:
        return runtime.metrics.exposition()

    seat.siblings.on(exposition.VERB, lambda _: own())
    runtime.expose = partial(exposition.of_all, seat.siblings)
    draining = runtime.readiness.draining
    runtime.tasks.start("siblings", partial(seat.siblings.serve, draining))
    runtime.tasks.start("seat", partial(seat.hold, draining))


def _known(endpoints: Endpoints) -> frozenset[Address]:
    return frozenset(address for addresses in endpoints.services.values() for address in addresses)


def public_sockets(settings: GatewaySettings) -> Sequence[socket.socket]:
    """Return the inherited public socket, where there is one.

    Several workers share it, so one of them may take most of a burst (README): the price of a port that somebody else holds open.
    """
    if settings.fd is None:
        return ()
    # It must not reach a child of ours; our own descriptor does not say so by itself.
    os.set_inheritable(settings.fd, False)
    return (socket.socket(fileno=settings.fd),)


def main() -> NoReturn:
    """Run the gateway until it is told to stop; the exit codes are those of every service."""
    settings = read(GatewaySettings)
    own = open_sockets(settings, count=settings.workers)
    public = public_sockets(settings)
    if settings.workers == 1:
        if hasattr(signal, "SIGHUP"):
            # Until it is heeded: one that comes while we start would end us, and the file is about to be read anyway.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run(settings, create, [*own, *public])
    # Here, since it stands on what only Linux has.
    from services.gateway.workers.parent import Parent

    parent = Parent(settings, partial(load, GatewaySettings), own, public)
    seat = parent.staff()
    mine = parent.settings.model_copy(update={"replica": f"{settings.replica_name}-w{seat.number}"})
    log.set_up(service=mine.service, replica=mine.replica, level=mine.log_level)
    run(mine, partial(create, seat=seat), [own[seat.number - 1], *public])
