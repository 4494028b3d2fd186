"""Assembly of compute: the pools, the token check and the routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.compute.adapters.metrics import PoolMetrics
from services.compute.pool.cpus import usable_cpus
from services.compute.pool.supervisor import ProcessPool
from services.compute.pool.threads import ThreadPool
from services.compute.routes import Parts, router
from services.compute.settings import ComputeSettings
from shared import http
from shared.app import Application, Opened, Runtime, build
from shared.bus.connect import connected
from shared.endpoints import Endpoints
from shared.revocation import follow
from shared.tokens import KeySource, TokenVerifier

FIRST_CHILD_TIMEOUT_S = 5.0


def create(settings: ComputeSettings, *, keys: KeySource | None = None) -> Application:
    """Return the service; `keys` replaces the users service as the source of public keys."""

    @asynccontextmanager
    async def resources(settings: ComputeSettings, runtime: Runtime) -> AsyncIterator[Opened[Parts]]:
        slots = settings.slots or usable_cpus()
        metrics = PoolMetrics(runtime.metrics)
        pool = ProcessPool(slots=slots, queue_max=settings.queue_max_of(slots), observer=metrics)
        metrics.show(pool)
        threads = ThreadPool(threads=settings.threads)
        endpoints = Endpoints(settings.endpoints)
        nats_url = settings.nats_url.get_secret_value()

        async def has_live_child() -> None:
            if pool.live == 0:
                raise ConnectionError("no child process is running")

        async with http.open_client() as client:
            source = keys or http.JwksOverHttp(client, endpoints, "users", "/.well-known/jwks.json")
            try:
                await endpoints.refresh()
                runtime.tasks.start("endpoints", endpoints.watch)
                pool.start()
                verifier = TokenVerifier(source)
                await follow(
                    runtime.tasks, verifier, lambda: connected(nats_url, name=settings.replica_name), issuer="users"
                )
                await pool.started(timeout_s=FIRST_CHILD_TIMEOUT_S)
                yield Opened(
                    Parts(verifier, pool, threads, settings.job_timeout_s),
                    {"pool": has_live_child},
                )
            finally:
                threads.close()
                await pool.close()

    return build(settings, routers=[router], resources=resources, title="Compute")
