"""Starts real servers without a fleet, for tests: `with dev.infra.start(("nats",)) as infra: infra.urls`."""

import asyncio
import concurrent.futures
import fcntl
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from dev.errors import CannotRun
from dev.fleet import INFRA
from dev.infra.probes import NotReady
from dev.infra.servers import RECIPES, ServerRecipe, StopSteps
from dev.infra.site import Site
from dev.ports import is_free
from dev.process import Child
from dev.tail import last_lines

READY_TIMEOUT_S = 60.0
ATTEMPTS_MAX = 4
T = TypeVar("T")


async def start_ready(recipe: ServerRecipe, site: Site) -> Child:
    """Start the server and return once it answers; another port is tried when somebody took ours meanwhile."""
    for _ in range(ATTEMPTS_MAX):
        child = await recipe.spawn()
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                if await wait_ready(recipe, child):
                    return child
        except BaseException:
            child.send(signal.SIGKILL)  # also before it has a group of its own
            child.sweep()
            await child.wait()
            raise
        if is_free(recipe.port):
            break  # it did not end because of the port: a second try would end the same way
    lines = " / ".join(last_lines(site.logs / f"{recipe.name}.log", 3))
    raise CannotRun(f"{recipe.name} ended while starting: {lines}")


async def wait_ready(recipe: ServerRecipe, child: Child) -> bool:
    """Probe until the server answers (True) or its process ends (False)."""
    pause_s = 0.005
    while child.exit_code is None:
        try:
            await recipe.probe()
        except (OSError, NotReady):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.05)
        else:
            return True
    return False


async def stop_child(child: Child, steps: StopSteps) -> None:
    """Send each signal in turn until the process has ended within that step's seconds, then sweep its group."""
    for number, wait_s in steps:
        if child.exit_code is not None:
            break
        child.send(number)
        try:
            async with asyncio.timeout(wait_s):
                await child.wait()
        except TimeoutError:
            continue
    child.sweep()


class Infra:
    """Running real servers, driven by one background thread that lives until `stop()`.

    The thread matters: the kernel ties each server's life to the thread that started it.
    """

    def __init__(self, site: Site, recipes: list[ServerRecipe], *, remove: Path | None) -> None:
        self.site = site
        self.recipes = recipes
        self.children: dict[str, Child] = {}
        self._remove = remove
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dev-infra", daemon=True)
        self._thread.start()

    @property
    def urls(self) -> dict[str, str]:
        """`NATS_URL`, `REDIS_URL`, `DATABASE_URL` of the started servers, with their passwords."""
        variables = {infra.name: infra.variable for infra in INFRA}
        return {variables[recipe.name]: recipe.url for recipe in self.recipes}

    def stop(self) -> None:
        """Stop the servers, newest first, and remove the temporary folder if one was made."""
        if self._thread.is_alive():
            self._run(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
        if self.site.keep_fds:
            for descriptor in self.site.keep_fds:
                os.close(descriptor)
            self.site.keep_fds = ()
        for folder in [*self.site.outside, *([self._remove] if self._remove else [])]:
            shutil.rmtree(folder, ignore_errors=True)

    def begin(self) -> None:
        """Start everything at once; all or nothing."""
        try:
            self._run(self._start())
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Infra":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _run(self, work: Coroutine[object, object, T]) -> T:
        future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()

    async def _start(self) -> None:
        async def one(recipe: ServerRecipe) -> None:
            self.children[recipe.name] = await start_ready(recipe, self.site)

        try:
            async with asyncio.TaskGroup() as group:
                for recipe in self.recipes:
                    group.create_task(one(recipe))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _stop(self) -> None:
        async with asyncio.TaskGroup() as group:
            for recipe in self.recipes:
                if child := self.children.get(recipe.name):
                    group.create_task(stop_child(child, recipe.stop_steps))


def start(
    names: Sequence[str] = ("nats", "valkey", "postgres"),
    *,
    data_dir: Path | None = None,
    run_dir: Path | None = None,
) -> Infra:
    """Start the named real servers and return them ready; without folders a temporary one is used and removed.

    Blocks until each server has answered in its own protocol. Raises CannotRun when one cannot run.
    """
    temporary = Path(tempfile.mkdtemp(prefix="rh-")) if data_dir is None or run_dir is None else None
    root = temporary or Path()
    data, run = data_dir or root / "data", run_dir or root / "run"
    site = Site.make(data=data, run=run, logs=run / "logs", secrets=run / "secrets", mark=secrets.token_hex(8))
    site.keep_fds = (_lock(site.data),)
    infra = Infra(site, [RECIPES[name](site) for name in names], remove=temporary)
    infra.begin()
    return infra


def _lock(data: Path) -> int:
    descriptor = os.open(data / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise CannotRun(
            f"The data folder {data} is in use by another runner: stop it or use another folder."
        ) from error
    return descriptor
