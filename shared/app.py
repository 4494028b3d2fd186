"""Assembly: one call turns a service's routes and resources into the application that is served."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import structlog
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from shared import metrics, middleware, problems, telemetry
from shared.checks import Check, Readiness
from shared.errors import CannotStart, Problem
from shared.metrics import Metrics
from shared.settings import Settings
from shared.tasks import Supervisor

P = TypeVar("P")
S = TypeVar("S", bound=Settings)


@dataclass(slots=True)
class Runtime:
    """What assembly gives to a service before its resources open."""

    metrics: Metrics = field(default_factory=Metrics)
    readiness: Readiness = field(default_factory=Readiness)
    tasks: Supervisor = field(default_factory=Supervisor)
    start_is_refused: bool = False
    """Set where the start failed for a reason that trying again does not change."""
    expose: Callable[[], Awaitable[bytes]] | None = None
    """What `/metrics` answers where one process speaks for several; else this process's own metrics."""


@dataclass(frozen=True, slots=True)
class Opened(Generic[P]):
    """Open resources: `parts` for the routes, the round trips that readiness requires, and how long each may fail."""

    parts: P
    checks: Mapping[str, Check] = field(default_factory=dict)
    tolerated_s: Mapping[str, float] = field(default_factory=dict)


@asynccontextmanager
async def _told(resources: AbstractAsyncContextManager[Opened[P]], runtime: Runtime) -> AsyncIterator[Opened[P]]:
    """Open resources; where that fails, say so in one line: a sentence for what the operator must change, else the whole fault."""
    async with AsyncExitStack() as stack:
        try:
            opened = await stack.enter_async_context(resources)
        except (CannotStart, Problem) as reason:
            runtime.start_is_refused = isinstance(reason, CannotStart)
            structlog.get_logger().error("start_failed", reason=str(reason))
            raise
        except Exception:
            structlog.get_logger().exception("start_failed")
            raise
        yield opened


class Application:
    """An ASGI application with its FastAPI inside and the shared middleware around it.

    `http_protocol` is uvicorn's name of the class that reads HTTP, or such a class where a service has reason to bring its own.
    """

    http_protocol: type[asyncio.Protocol] | str = "httptools"

    def __init__(self, fastapi: FastAPI, asgi: ASGIApp, runtime: Runtime, settings: Settings) -> None:
        self.fastapi = fastapi
        self.runtime = runtime
        self.settings = settings
        self._asgi = asgi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._asgi(scope, receive, send)


def build(
    settings: S,
    *,
    routers: Sequence[APIRouter],
    resources: Callable[[S, Runtime], AbstractAsyncContextManager[Opened[P]]],
    title: str,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    front: Callable[[ASGIApp, Runtime], ASGIApp] = lambda app, _: app,
    openapi_url: str | None = "/openapi.json",
    shows_probes: bool = False,
) -> Application:
    """Assemble a service.

    `resources(settings, runtime)` opens what the service needs for as long as it runs; its `parts` reach routes through
    `parts_of`. `wrap` puts a service's own ASGI layer between the shared middleware and FastAPI, `front` one around everything.
    `openapi_url` is None where a service answers with a document of its own making; `shows_probes` puts the probes into the document.
    """
    runtime = Runtime()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with runtime.tasks, _told(resources(settings, runtime), runtime) as opened:
            runtime.readiness.require(opened.checks, opened.tolerated_s)
            app.state.parts = opened.parts
            structlog.get_logger().info("started", service=settings.service, replica=settings.replica_name)
            try:
                yield
            finally:
                # Background work ends before what it uses is closed.
                await runtime.tasks.close()
                await asyncio.to_thread(flush_spans)
                structlog.get_logger().info("stopped", service=settings.service, replica=settings.replica_name)

    fastapi = FastAPI(
        title=title,
        version="1",
        lifespan=lifespan,
        docs_url=None,
        openapi_url=openapi_url,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=telemetry.OFF,
    )
    problems.install(fastapi)
    fastapi.include_router(_probes(runtime, are_shown=shows_probes))
    for router in routers:
        fastapi.include_router(router)
    flush_spans = telemetry.instrument(fastapi, settings)
    return Application(fastapi, front(_surround(wrap(fastapi), settings, runtime), runtime), runtime, settings)


def _surround(app: ASGIApp, settings: Settings, runtime: Runtime) -> ASGIApp:
    """Put the shared middleware around an app; the first line is the innermost."""
    app = middleware.BodyLimit(middleware.DeadlineLimit(app), settings.body_bytes_max)
    app = middleware.Faults(app)
    app = middleware.ResponseHeaders(app, middleware.nosniff)
    app = middleware.DrainNotice(app, runtime.readiness.draining)
    app = middleware.RequestMetrics(app, runtime.metrics)
    return middleware.RequestLog(app)


def parts_of(connection: HTTPConnection) -> Any:
    """Return the open resources of the service that serves this request; a service wraps it in a typed dependency."""
    return connection.app.state.parts


def _probes(runtime: Runtime, *, are_shown: bool) -> APIRouter:
    """Return the routes that every service has for its operators."""
    router = APIRouter(include_in_schema=are_shown)

    @router.head("/live", include_in_schema=False)
    @router.get("/live", summary="Whether the process runs", response_model=dict[str, str])
    async def live() -> Response:
        return JSONResponse({"state": "live"}, headers={"Cache-Control": "no-store"})

    @router.head("/ready", include_in_schema=False)
    @router.get(
        "/ready",
        summary="Whether it can serve, and what it needs for that",
        response_model=dict[str, Any],
        responses={503: {"description": "It cannot, or no longer."}},
    )
    async def ready() -> Response:
        is_ready, report = await runtime.readiness.report()
        return JSONResponse(report, 200 if is_ready else 503, headers={"Cache-Control": "no-store"})

    @router.get("/metrics", summary="Metrics in the text format of Prometheus", response_class=PlainTextResponse)
    async def exposition() -> Response:
        text = runtime.metrics.exposition() if runtime.expose is None else await runtime.expose()
        return Response(text, media_type=metrics.CONTENT_TYPE)

    return router
