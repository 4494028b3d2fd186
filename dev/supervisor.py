"""Runs one fleet: starts servers and services by readiness, keeps them up, scales, replaces and stops them in order."""

import asyncio
import itertools
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dev.board import Board
from dev.endpoints import Endpoints
from dev.errors import CannotRun
from dev.external import ExternalServer
from dev.fleet import Fleet, Service
from dev.infra.servers import RECIPES, ServerRecipe
from dev.infra.site import Site
from dev.launcher import Launcher
from dev.rows import Row, rows_of
from dev.service import ServiceReplica, Surroundings
from dev.tail import last_lines
from dev.unit import FAILURE_LINES, Post, StartFailed, Unit

REPLICAS_MAX = 32
# Connections that wait while every gateway is being replaced.
BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: how many of each service, which servers are given from outside, and the public socket."""

    fleet: Fleet
    replicas: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    public: socket.socket | None = None


class Supervisor:
    """Owns every process of one fleet between `run()` and its end."""

    def __init__(self, plan: Plan, site: Site, launcher: Launcher) -> None:
        self.plan = plan
        self.site = site
        self.board = Board()
        self.externals: dict[str, ExternalServer] = {}
        self.servers: dict[str, Unit] = {}
        self.services: dict[str, list[Unit]] = {service.name: [] for service in plan.fleet.services}
        self._launcher = launcher
        self._recipes: dict[str, ServerRecipe] = {}
        self._turns = {service.name: asyncio.Lock() for service in plan.fleet.services}
        self._group: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()
        self._endpoints = Endpoints(site.run / "endpoints.json", self.services)
        self._around = Surroundings(
            site=site,
            launcher=launcher,
            endpoints=self._endpoints.file,
            urls=self.urls,
            variables={server.name: server.variable for server in plan.fleet.infra},
            settings=plan.settings,
            public_url=f"http://127.0.0.1:{plan.public.getsockname()[1]}" if plan.public else "",
            public_fd=plan.public.fileno() if plan.public else None,
        )
        self.board.listen(lambda: self._endpoints.update(self.units))
        self._make_infra()
        for service in plan.fleet.services:
            for _ in range(plan.replicas.get(service.name, 1)):
                self._add(service)

    @property
    def units(self) -> list[Unit]:
        """Every row that is ours, in the order of the table."""
        return [*self.servers.values(), *itertools.chain.from_iterable(self.services.values())]

    def urls(self) -> dict[str, str]:
        """The servers' URLs with their credentials, by variable."""
        found = {}
        for server in self.plan.fleet.infra:
            if owner := self.externals.get(server.name) or self._recipes.get(server.name):
                found[server.variable] = owner.url
        return found

    def rows(self) -> list[Row]:
        """The table as it stands."""
        gateway = self.plan.public.getsockname()[1] if self.plan.public else None
        return rows_of(self.plan.fleet, list(self.externals.values()), self.units, public_port=gateway)

    def status(self) -> dict[str, Any]:
        """The object that `status --json` prints."""
        port = self.plan.public.getsockname()[1] if self.plan.public else None
        gateway = f"http://127.0.0.1:{port}" if port else None
        return {"gateway": gateway, "resources": [row.as_json() for row in self.rows()]}

    @property
    def is_ready(self) -> bool:
        """Whether every row is ready."""
        return all(row.state == "ready" for row in self.rows())

    @property
    def failures(self) -> list[Row]:
        """Rows that gave up."""
        return [row for row in self.rows() if row.state == "failed"]

    async def run(self) -> None:
        """Run the fleet until `stop()`; returns when every process has ended, in the stop order."""
        self.board.change()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                tasks = [group.create_task(server.run()) for server in self.externals.values()]
                tasks.append(group.create_task(self._open_launcher()))
                for unit in self.units:
                    group.create_task(unit.run())
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
                await self._drain_all()
        finally:
            self.kill()  # nothing is left after an orderly end; after a fault of ours this is what ends the rest
            self._group = None
            await self._launcher.close()

    def stop(self) -> None:
        """Begin to stop the fleet."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    def kill(self) -> None:
        """End every process now, for the impatient second Ctrl-C."""
        for unit in self.units:
            for child in unit.children:
                child.send(signal.SIGKILL)
                child.sweep()

    async def restart(self, name: str) -> list[str]:
        """Replace a service's replicas one by one, or restart one replica or server; return the names done."""
        if name in self.servers:
            await self.servers[name].bounce()
            return [name]
        if name in self.externals:
            raise CannotRun(f"{name} runs outside this fleet: restart it there.")
        for service, units in self.services.items():
            chosen = units if name == service else [unit for unit in units if unit.post.name == name]
            if chosen:
                async with self._turns[service]:
                    for unit in list(chosen):
                        await self._replace(unit)
                return [unit.post.name for unit in chosen]
        raise CannotRun(f"There is no {name!r} here: one of {', '.join(self._names())}.")

    async def reload(self, service: str) -> None:
        """Replace a service's replicas after a change of source; a failure leaves the old ones and shows in their row."""
        async with self._turns[service]:
            for unit in list(self.services[service]):
                try:
                    await self._replace(unit)
                except CannotRun:
                    return  # the row says why; the other replicas would fail alike

    async def scale(self, name: str, count: int) -> None:
        """Bring a service to `count` replicas: new ones are ready before they are listed, old ones leave last to first."""
        service = self.plan.fleet.service(name)
        if service is None:
            raise CannotRun(f"There is no service {name!r}: one of {', '.join(self.services)}.")
        if not (1 if service.public else 0) <= count <= REPLICAS_MAX:
            raise CannotRun(f"{name} can have {1 if service.public else 0} to {REPLICAS_MAX} replicas, not {count}.")
        async with self._turns[name]:
            units = self.services[name]
            added = [self._add(service) for _ in range(count - len(units))]
            for unit in added:
                self._start(unit.run())
            for unit in units[count:][::-1]:
                await unit.drain()
                units.remove(unit)
                self.board.change()
            await self.board.until(lambda: all(unit.state in ("ready", "failed", "stopped") for unit in added))
            if broken := [unit for unit in added if unit.state != "ready"]:
                raise CannotRun(f"{broken[0].post.name} did not start: {broken[0].note}")

    async def _replace(self, unit: Unit) -> None:
        try:
            await unit.replace()
        except (StartFailed, OSError) as error:
            unit.failure = last_lines(unit.post.log, FAILURE_LINES)
            unit.note = f"the new process did not start, the old one goes on: {error}" if unit.current else str(error)
            self.board.change()
            raise CannotRun(f"{unit.post.name}: {unit.note}") from error

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if self._group is None or self.is_stopping:
            work.close()
            raise CannotRun("The fleet is stopping.")
        self._group.create_task(work)

    async def _open_launcher(self) -> None:
        try:
            await self._launcher.open()
        except OSError:
            return  # each service's own launch tries again and reports

    async def _drain_all(self) -> None:
        self.board.change()
        for name in self.plan.fleet.stop_order:
            await self._drain(self.services[name])
        await self._drain(list(self.servers.values()))

    async def _drain(self, units: list[Unit]) -> None:
        async with asyncio.TaskGroup() as group:
            for unit in units:
                group.create_task(unit.drain(wait_s=0.0))

    def _make_infra(self) -> None:
        needed = {need for service in self.plan.fleet.services for need in service.needs}
        for server in self.plan.fleet.infra:
            if url := self.plan.given.get(server.variable):
                self.externals[server.name] = ExternalServer(server, url, self.board)
            elif server.name in needed:
                recipe = RECIPES[server.name](self.site)
                self._recipes[server.name] = recipe
                self.servers[server.name] = self._server_unit(server.name, recipe)

    def _server_unit(self, name: str, recipe: ServerRecipe) -> Unit:
        log = self.site.logs / f"{name}.log"
        release = self.site.ports.release
        post = Post(name, "infra", name, log, needs=list, make=lambda: recipe, release=release, is_polled=False)
        return Unit(post, self.board)

    def _add(self, service: Service) -> Unit:
        units = self.services[service.name]
        taken = {unit.post.name for unit in units}
        name = next(name for n in itertools.count(1) if (name := f"{service.name}-{n}") not in taken)
        log = self.site.logs / f"{name}.log"
        make: Callable[[], ServiceReplica] = partial(ServiceReplica, service, name, log, self._around)
        needs = partial(self._missing, service)
        unit = Unit(Post(name, "service", service.name, log, needs, make, self.site.ports.release), self.board)
        units.append(unit)
        return unit

    def _missing(self, service: Service) -> list[str]:
        def is_ready(need: str) -> bool:
            return (self.externals.get(need) or self.servers[need]).state == "ready"

        return [need for need in service.needs if not is_ready(need)]

    def _names(self) -> list[str]:
        return [*self.servers, *self.services]


def open_public(port: int) -> socket.socket:
    """Listen on the fleet's public port; every gateway process accepts from this one socket."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
