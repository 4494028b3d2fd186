"""Facts about one running fleet: order, crashes, replacement, scaling, and what callers see meanwhile."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dev.errors import CannotRun
from dev.fleet import INFRA, Fleet, Service
from dev.infra.site import Site
from dev.launcher import ExecLauncher, ForkLauncher, Launcher
from dev.supervisor import Plan, Supervisor, open_public
from dev.unit import Unit

pytestmark = pytest.mark.slow  # real processes

ROOT = Path(__file__).parents[2]
FAKE = "dev.tests.fake_service"
GATEWAY = Service("gateway", FAKE, public=True)
USERS = Service("users", FAKE)
WITHIN_S = 20.0


def fleet_of(*services: Service) -> Fleet:
    return Fleet(INFRA, services, tuple(service.name for service in reversed(services)))


def make_site(folder: Path) -> Site:
    return Site.make(
        data=folder / "data", run=folder / "run", logs=folder / "logs", secrets=folder / "secrets", mark="test"
    )


@dataclass
class Running:
    supervisor: Supervisor
    site: Site
    url_port: int

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            await self.supervisor.board.until(holds)

    async def ready(self) -> None:
        await self.until(lambda: self.supervisor.is_ready)

    def unit(self, name: str) -> Unit:
        return next(unit for unit in self.supervisor.units if unit.post.name == name)

    def pid(self, name: str) -> int:
        current = self.unit(name).current
        assert current
        return current.child.pid

    def endpoints(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads((self.site.run / "endpoints.json").read_text())
        return found

    async def get(self, path: str) -> tuple[int, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.url_port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body


@asynccontextmanager
async def running(
    tmp_path: Path,
    fleet: Fleet,
    *,
    launcher: Callable[[Site], Launcher] = lambda _site: ExecLauncher(ROOT),
    **plan: Any,
) -> AsyncIterator[Running]:
    site = make_site(tmp_path)
    public: socket.socket = open_public(0)
    supervisor = Supervisor(Plan(fleet, public=public, **plan), site, launcher(site))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.run())
            try:
                yield Running(supervisor, site, public.getsockname()[1])
            finally:
                supervisor.stop()
    finally:
        public.close()
    assert [child for unit in supervisor.units for child in unit.children] == []


async def test_a_killed_process_is_restarted_and_off_the_list_meanwhile(tmp_path: Path) -> None:
    async with running(tmp_path, fleet_of(USERS, GATEWAY)) as fleet:
        await fleet.ready()
        before = fleet.pid("users-1")
        assert len(fleet.endpoints()["users"]) == 1

        os.kill(before, signal.SIGKILL)
        await fleet.until(lambda: not fleet.supervisor.is_ready)

        assert fleet.endpoints()["users"] == []
        await fleet.ready()
        assert fleet.pid("users-1") != before
        assert fleet.unit("users-1").restarts == 1
        assert await fleet.get("/users") == (200, {"replica": "users-1", "pid": fleet.pid("users-1")})


@pytest.mark.slow
async def test_five_quick_crashes_fail_with_the_log_and_a_mended_source_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_text("broken")
    monkeypatch.setenv("RH_USERS_FAKE", str(source))

    async with running(tmp_path, fleet_of(USERS)) as fleet:
        unit = fleet.unit("users-1")
        await fleet.until(lambda: unit.state == "failed")
        assert "ended with exit code 1" in unit.note
        assert "python3 dev restart users" in unit.note
        assert unit.failure[-1] == "this source is broken"
        assert len(unit.failure) <= 15

        source.write_text("fine")
        await fleet.supervisor.restart("users")

        assert unit.state == "ready"


async def test_refused_settings_fail_at_once_with_what_the_service_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RH_USERS_FAKE", "settings")

    async with running(tmp_path, fleet_of(USERS)) as fleet:
        unit = fleet.unit("users-1")
        await fleet.until(lambda: unit.state == "failed")

        assert unit.restarts == 1
        assert unit.note == "refuses its settings: users: RH_USERS_FAKE is not a good value"


async def test_a_replacement_that_does_not_start_leaves_the_old_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_text("fine")
    monkeypatch.setenv("RH_USERS_FAKE", str(source))

    async with running(tmp_path, fleet_of(USERS)) as fleet:
        await fleet.ready()
        before = fleet.pid("users-1")
        source.write_text("broken")

        await fleet.supervisor.reload("users")

        unit = fleet.unit("users-1")
        assert (unit.state, fleet.pid("users-1")) == ("ready", before)
        assert "the old one goes on" in unit.note
        assert unit.failure[-1] == "this source is broken"
        with pytest.raises(CannotRun, match="the old one goes on"):
            await fleet.supervisor.restart("users")


@pytest.mark.slow
async def test_scaling_and_restarting_under_load_fail_no_request(tmp_path: Path) -> None:
    async with running(tmp_path, fleet_of(USERS, GATEWAY), replicas={"users": 2}) as fleet:
        await fleet.ready()
        answers: list[int] = []
        is_over = False

        async def client() -> None:
            while not is_over:
                answers.append((await fleet.get("/users"))[0])

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(client())
            await fleet.supervisor.scale("users", 3)
            await fleet.supervisor.restart("users")
            await fleet.supervisor.scale("users", 1)
            await fleet.supervisor.scale("gateway", 2)
            await fleet.supervisor.restart("gateway")
            await fleet.supervisor.scale("gateway", 1)
            is_over = True

        assert len(answers) > 50
        assert set(answers) == {200}
        assert [row.name for row in fleet.supervisor.rows()] == ["users-1", "gateway"]


async def test_a_waiting_row_names_what_it_waits_for(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        given = {"NATS_URL": f"nats://user:secret@127.0.0.1:{nobody_listens.getsockname()[1]}"}

        async with running(tmp_path, fleet_of(Service("realtime", FAKE, needs=("nats",))), given=given) as fleet:
            await fleet.until(lambda: "does not answer" in fleet.supervisor.externals["nats"].note)

            nats, realtime = fleet.supervisor.rows()
            assert (realtime.state, realtime.note) == ("waiting", "waits for: nats")
            assert nats.state == "starting"
            assert "secret" not in json.dumps(fleet.supervisor.status())


async def test_a_given_server_is_used_and_not_ours(tmp_path: Path, nats_url: str) -> None:
    service = Service("realtime", FAKE, needs=("nats",))

    async with running(tmp_path, fleet_of(service, GATEWAY), given={"NATS_URL": nats_url}) as fleet:
        await fleet.ready()

        row = fleet.supervisor.rows()[0]
        assert (row.name, row.kind, row.state, row.pid) == ("nats", "infra", "ready", None)
        assert "@" not in str(row.url)
        assert fleet.supervisor.urls()["NATS_URL"] == nats_url
        with pytest.raises(CannotRun, match="outside this fleet"):
            await fleet.supervisor.restart("nats")


async def test_a_service_gets_its_contract_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RH_GATEWAY_FAKE", "mine")
    monkeypatch.setenv("RH_USERS_FAKE", "not for the gateway")
    monkeypatch.setenv("SOME_SECRET_OF_THE_CALLER", "x")
    monkeypatch.setenv("RH_GATEWAY_CHOSEN_FILE", "mine too")
    gateway = Service(
        "gateway",
        FAKE,
        secret_files={"KEY_FILE": "key"},
        folders={"FOLDER": "letters", "FAKE": "replaced", "CHOSEN": "replaced"},
        address_in="ADDRESS",
        public=True,
    )

    async with running(tmp_path, fleet_of(gateway)) as fleet:
        await fleet.ready()
        host, _, port = fleet.endpoints()["gateway"][0].partition(":")
        public_port, fleet.url_port = fleet.url_port, int(port)
        env = (await fleet.get("/env"))[1]

    assert env.pop("RH_GATEWAY_FD").isdigit()
    assert env.pop("RH_GATEWAY_PORT") == port
    assert host == "127.0.0.1"
    assert {name: value for name, value in env.items() if name not in ("PATH", "HOME", "TMPDIR", "TZ")} == {
        "ENVIRONMENT": "development",
        "LOG_LEVEL": "INFO",
        "LANG": "C.UTF-8",
        "ROUNDHOUSE_RUN": "test",
        "RH_GATEWAY_HOST": "127.0.0.1",
        "RH_GATEWAY_REPLICA": "gateway-1",
        "RH_GATEWAY_ENDPOINTS": (fleet.site.run / "endpoints.json").as_uri(),
        "RH_GATEWAY_KEY_FILE": str(fleet.site.secrets / "key"),
        "RH_GATEWAY_FAKE": "mine",
        "RH_GATEWAY_FOLDER": (fleet.site.data / "letters").as_uri(),
        "RH_GATEWAY_CHOSEN_FILE": "mine too",
        "RH_GATEWAY_ADDRESS": f"http://127.0.0.1:{public_port}",
        **({"LC_CTYPE": env["LC_CTYPE"]} if "LC_CTYPE" in env else {}),
    }


@pytest.mark.slow
async def test_the_fork_server_starts_what_is_on_disk_and_its_own_death_is_survived(tmp_path: Path) -> None:
    launchers: list[ForkLauncher] = []

    def launcher(site: Site) -> Launcher:
        launchers.append(ForkLauncher(ROOT, site.clean_env(), site.logs / "forkserver.log"))
        return launchers[0]

    async with running(tmp_path, fleet_of(USERS, GATEWAY), launcher=launcher) as fleet:
        await fleet.ready()
        before = {name: fleet.pid(name) for name in ("users-1", "gateway-1")}
        assert await fleet.get("/users") == (200, {"replica": "users-1", "pid": before["users-1"]})
        server = launchers[0].pid
        assert server
        assert Path(f"/proc/{before['users-1']}/stat").read_text().rpartition(")")[2].split()[1] == str(server)

        os.kill(server, signal.SIGKILL)
        await fleet.until(lambda: not fleet.supervisor.is_ready)
        await fleet.ready()

        assert launchers[0].pid != server
        assert all(fleet.pid(name) != pid for name, pid in before.items())
        assert (await fleet.get("/users"))[0] == 200


async def test_unknown_names_and_counts_are_refused_with_the_choice(tmp_path: Path) -> None:
    async with running(tmp_path, fleet_of(USERS, GATEWAY)) as fleet:
        await fleet.ready()

        with pytest.raises(CannotRun, match="one of users, gateway"):
            await fleet.supervisor.restart("nothing")
        with pytest.raises(CannotRun, match="1 to 32"):
            await fleet.supervisor.scale("gateway", 0)
