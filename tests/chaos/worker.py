"""A small service with the house's own start, drain and end, as a process: `python -m tests.chaos.worker`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

from fastapi import APIRouter
from pydantic_settings import SettingsConfigDict

from shared import serve
from shared.app import Application, Opened, Runtime, build
from shared.settings import Settings

WORK_S = 0.05

router = APIRouter()


class WorkerSettings(Settings):
    """`RH_WORKER_` variables."""

    model_config = SettingsConfigDict(env_prefix="RH_WORKER_")
    service: ClassVar[str] = "worker"


@router.post("/work")
async def work() -> dict[str, str]:
    """Take a moment, so that a worker that is stopped nearly always has something under way."""
    await asyncio.sleep(WORK_S)
    return {"state": "done"}


@asynccontextmanager
async def resources(_: WorkerSettings, __: Runtime) -> AsyncIterator[Opened[None]]:
    yield Opened(None)


def create(settings: WorkerSettings) -> Application:
    """Return the application."""
    return build(settings, routers=[router], resources=resources, title="worker")


if __name__ == "__main__":
    serve.main(WorkerSettings, create)
