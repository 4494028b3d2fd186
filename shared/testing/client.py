"""An in-process client: the whole application with its lifespan, without a socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from shared.app import Application


@asynccontextmanager
async def running(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    """Open the application's resources and yield a client that speaks ASGI to it."""
    async with app.fastapi.router.lifespan_context(app.fastapi):
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service.test", timeout=10) as client:
            yield client
