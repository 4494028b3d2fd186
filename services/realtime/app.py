"""The realtime application: opens what it needs, starts its background work and puts its routes together."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext

from services.realtime import consumers
from services.realtime.domain.events import EventBus
from services.realtime.hub.drain import send_away
from services.realtime.hub.hub import Hub
from services.realtime.hub.keeper import Keeper
from services.realtime.hub.metrics import HubMetrics
from services.realtime.hub.pulse import Pulse
from services.realtime.routes import ROUTERS
from services.realtime.routes.access import Parts
from services.realtime.routes.cutting import Cuttable
from services.realtime.settings import RealtimeSettings
from shared.app import Application, Opened, Runtime, build
from shared.bus.base import Bus
from shared.bus.connect import connect
from shared.endpoints import Endpoints
from shared.http import JwksOverHttp, open_client
from shared.revocation import follow
from shared.tokens import LEEWAY_S, KeySource, TokenVerifier

PING_TIMEOUT_S = 0.9
SENDING_AWAY_SHARE = 0.8
"""Of the time before the server stops; the rest is for the last ones to read their close frame."""


def create(settings: RealtimeSettings, *, keys: KeySource | None = None) -> Application:
    """Return the service's application; `keys` replaces the public keys fetched from the users service."""

    @asynccontextmanager
    async def resources(settings: RealtimeSettings, runtime: Runtime) -> AsyncIterator[Opened[Parts]]:
        async with AsyncExitStack() as stack:
            bus = await connect(settings.nats_url.get_secret_value(), name=settings.replica_name)
            stack.push_async_callback(bus.close)
            source = keys or await _open_keys(settings, runtime, stack)
            hub = Hub(bus, limits=settings.limits, metrics=HubMetrics(runtime.metrics.registry))
            await hub.open()
            for subscription in await consumers.subscribe(bus, EventBus(bus, source="/realtime"), hub):
                stack.push_async_callback(subscription.stop)
            _start_work(hub, settings, runtime)
            verifier = TokenVerifier(source)
            feed = await follow(runtime.tasks, verifier, lambda: nullcontext(bus), issuer="users")
            feed.revoked.on_added.append(hub.revoke)
            parts = Parts(
                hub=hub,
                verifier=verifier,
                readiness=runtime.readiness,
                replica=secrets.token_hex(4),
                heartbeat_s=settings.heartbeat_s,
                leeway_s=LEEWAY_S,
            )
            yield Opened(parts, {"bus": lambda: _ping(bus)})

    app = build(settings, routers=ROUTERS, resources=resources, title="Roundhouse realtime")
    return Application(app.fastapi, Cuttable(app), app.runtime, settings)


async def _open_keys(settings: RealtimeSettings, runtime: Runtime, stack: AsyncExitStack) -> KeySource:
    endpoints = Endpoints(settings.endpoints)
    await endpoints.refresh()
    runtime.tasks.start("endpoints", endpoints.watch)
    client = await stack.enter_async_context(open_client())
    return JwksOverHttp(client, endpoints, "users", "/.well-known/jwks.json")


def _start_work(hub: Hub, settings: RealtimeSettings, runtime: Runtime) -> None:
    keeper = Keeper(hub)
    runtime.tasks.start("keeper", keeper.run)
    runtime.tasks.start("sweeper", keeper.sweep)
    runtime.tasks.start("pulse", Pulse(hub).run)
    within_s = min(settings.drain_grace_s / 2, settings.drain_wait_s * SENDING_AWAY_SHARE)
    runtime.tasks.start("drain", lambda: send_away(hub, runtime.readiness.draining, within_s=within_s))


async def _ping(bus: Bus) -> None:
    await bus.ping(timeout_s=PING_TIMEOUT_S)
