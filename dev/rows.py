"""The table of resources: one row for each process, as people and scripts see it."""

from dataclasses import asdict, dataclass
from typing import Any

from dev.board import Kind, State
from dev.external import ExternalServer
from dev.fleet import Fleet
from dev.unit import Unit


@dataclass(frozen=True, slots=True)
class Row:
    """One resource; `url` never holds credentials, `pid` is None where the process is not ours."""

    name: str
    kind: Kind
    state: State
    pid: int | None
    port: int | None
    url: str | None
    ready_s: float | None
    restarts: int
    note: str
    failure: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The row as `status --json` shows it."""
        shown = asdict(self)
        del shown["failure"]
        return shown


SCHEMES = {"nats": "nats", "valkey": "redis", "postgres": "postgresql"}


def rows_of(fleet: Fleet, externals: list[ExternalServer], units: list[Unit], *, public_port: int | None) -> list[Row]:
    """Return the rows in the fleet's order; the public service's rows show the one public port."""
    outside = {server.name: server for server in externals}
    ours: dict[str, list[Unit]] = {}
    for unit in units:
        ours.setdefault(unit.post.service, []).append(unit)
    rows = []
    for server in fleet.infra:
        if server.name in outside:
            rows.append(_external_row(outside[server.name]))
        rows += [_row(unit, unit.post.name, None) for unit in ours.get(server.name, [])]
    for service in fleet.services:
        found = ours.get(service.name, [])
        for unit in found:
            is_only = service.public and len(found) == 1
            rows.append(
                _row(unit, service.name if is_only else unit.post.name, public_port if service.public else None)
            )
    return rows


def _row(unit: Unit, name: str, public_port: int | None) -> Row:
    instance = unit.current
    alive = unit.children
    pid = instance.child.pid if instance else alive[0].pid if alive else None
    port = public_port or (instance.recipe.port if instance else None)
    scheme = SCHEMES.get(unit.post.service, "http")
    return Row(
        name=name,
        kind=unit.post.kind,
        state=unit.state,
        pid=pid,
        port=port,
        url=f"{scheme}://127.0.0.1:{port}" if port else None,
        ready_s=instance.ready_s if instance else None,
        restarts=unit.restarts,
        note=unit.note,
        failure=tuple(unit.failure),
    )


def _external_row(server: ExternalServer) -> Row:
    host, port = server.address
    return Row(
        name=server.name,
        kind="infra",
        state=server.state,
        pid=None,
        port=port,
        url=f"{SCHEMES[server.name]}://{host}:{port}",
        ready_s=server.ready_s,
        restarts=0,
        note=server.note,
    )
