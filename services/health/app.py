"""Assembly of health: the probes, their rounds and the routes; it needs nothing to be up in order to start."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from pydantic import SecretStr

from services.health.adapters.cache import CacheProbe
from services.health.adapters.metrics import StateMetrics
from services.health.adapters.nats import NatsProbe
from services.health.adapters.postgres import PostgresProbe
from services.health.adapters.replicas import open_client, replica_probes
from services.health.domain.aggregate import aggregate
from services.health.domain.board import Board
from services.health.domain.rounds import Probe, Rounds
from services.health.model import HealthDetail
from services.health.routes import Parts, router
from services.health.settings import HealthSettings
from shared import http
from shared.app import Application, Opened, Runtime, build
from shared.bus.connect import connected
from shared.cache.connect import connect as connect_cache
from shared.endpoints import Endpoints
from shared.revocation import follow
from shared.tokens import KeySource, TokenVerifier


def create(settings: HealthSettings, *, keys: KeySource | None = None) -> Application:
    """Return the service; `keys` replaces the users service as the source of public keys."""

    @asynccontextmanager
    async def resources(settings: HealthSettings, runtime: Runtime) -> AsyncIterator[Opened[Parts]]:
        endpoints = Endpoints(settings.endpoints)
        board = Board()

        def known() -> HealthDetail:
            return aggregate(
                board, expected=settings.expected, now=time.monotonic(), stale_after_s=settings.stale_after_s
            )

        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(open_client(timeout_s=settings.probe_timeout_s))
            calls = await stack.enter_async_context(http.open_client())
            servers = server_probes(settings)
            for probe in servers:
                stack.push_async_callback(probe.close)

            def probes() -> Sequence[Probe]:
                return [*servers, *replica_probes(endpoints, client)]

            rounds = Rounds(probes, board, every_s=settings.probe_every_s, timeout_s=settings.probe_timeout_s)
            board.keep([probe.target for probe in probes()])
            StateMetrics(runtime.metrics, known)
            runtime.tasks.start("endpoints", endpoints.watch)
            endpoints.on_change.append(rounds.wake)
            runtime.tasks.start("probes", rounds.run)
            source = keys or http.JwksOverHttp(calls, endpoints, "users", "/.well-known/jwks.json")
            verifier = TokenVerifier(source)
            nats_url = settings.nats_url.get_secret_value() if settings.nats_url else "memory://"
            await follow(
                runtime.tasks, verifier, lambda: connected(nats_url, name=settings.replica_name), issuer="users"
            )
            yield Opened(Parts(verifier, known, is_open=not settings.is_production))

    return build(settings, routers=[router], resources=resources, title="Health")


def server_probes(settings: HealthSettings) -> list[NatsProbe | CacheProbe | PostgresProbe]:
    """Return a probe for each server whose address is set; `memory://` lives inside a process and is none."""
    found: list[NatsProbe | CacheProbe | PostgresProbe] = []
    if url := _address(settings.nats_url):
        found.append(NatsProbe(url))
    if url := _address(settings.redis_url):
        found.append(CacheProbe(connect_cache(url)))
    if url := _address(settings.database_url):
        found.append(PostgresProbe(url, timeout_s=settings.probe_timeout_s))
    return found


def _address(url: SecretStr | None) -> str:
    text = url.get_secret_value() if url else ""
    return "" if text.startswith("memory://") else text
