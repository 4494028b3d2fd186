"""Facts about the real servers: they answer with the right credentials only, leave nothing, and run as root."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dev import infra, process
from dev.errors import CannotRun
from dev.infra import identity, locate, pgwire, probes
from dev.infra.servers import PostgresServer
from dev.infra.site import Site
from dev.infra.standalone import start_ready, stop_child

ROOT = Path(__file__).parents[2]


def vanish(pids: list[int], within_s: float = 10.0) -> list[int]:
    """Return the pids still alive when all have gone or the time is over."""
    until = time.monotonic() + within_s
    while (alive := [pid for pid in pids if process.start_time(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    return alive


def make_site(folder: Path) -> Site:
    return Site.make(
        data=folder / "data", run=folder / "run", logs=folder / "logs", secrets=folder / "secrets", mark="test"
    )


async def test_nats_refuses_a_wrong_password(nats_url: str) -> None:
    port = urlsplit(nats_url).port
    assert port

    with pytest.raises(probes.NotReady, match="Authorization Violation"):
        await probes.probe_nats(port, "roundhouse", "wrong")


async def test_valkey_refuses_a_wrong_password(redis_url: str) -> None:
    port = urlsplit(redis_url).port
    assert port

    with pytest.raises(probes.NotReady, match="WRONGPASS"):
        await probes.probe_valkey(port, "wrong")


async def test_postgres_refuses_a_wrong_password(postgres_url: str) -> None:
    port = urlsplit(postgres_url).port
    assert port

    with pytest.raises(probes.NotReady, match="password authentication failed"):
        await probes.probe_postgres(pgwire.Target("127.0.0.1", port, "roundhouse", "wrong", "roundhouse"))


def test_each_test_gets_an_empty_database_of_its_own(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    name = parts.path.lstrip("/")
    target = pgwire.Target("127.0.0.1", parts.port or 0, parts.username or "", parts.password or "", name)

    with pgwire.connect(target) as connection:
        rows = connection.query("SELECT current_database(), count(*) FROM pg_tables WHERE schemaname = 'public'")

    assert rows == [[name, "0"]]
    assert name.startswith("t_")


def test_folders_are_0700_and_secrets_0600_and_argv_has_none(tmp_path: Path) -> None:
    with infra.start(("nats", "valkey"), data_dir=tmp_path / "d", run_dir=tmp_path / "r") as running:
        passwords = [urlsplit(url).password or "" for url in running.urls.values()]
        argv = " ".join(Path(f"/proc/{c.pid}/cmdline").read_text() for c in running.children.values())

    modes = {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes["d"] == modes["r"] == modes["r/secrets"] == modes["r/logs"] == 0o700
    for name in (
        "r/secrets/nats-password",
        "r/secrets/valkey-password",
        "r/secrets/nats.conf",
        "r/secrets/valkey.conf",
    ):
        assert modes[name] == 0o600
    assert all(len(password) >= 30 for password in passwords)
    assert not any(password in argv for password in passwords)


@pytest.mark.slow
def test_stop_ends_every_process_and_removes_the_temporary_folder() -> None:
    running = infra.start(("nats", "valkey", "postgres"))
    pids = [child.pid for child in running.children.values()]
    folder = running.site.data.parent

    running.stop()

    assert vanish(pids, 2.0) == []
    assert not folder.exists()


def test_ports_and_passwords_stay_the_same_between_runs(tmp_path: Path) -> None:
    with infra.start(("nats", "valkey"), data_dir=tmp_path / "d", run_dir=tmp_path / "r") as first:
        urls = first.urls

    with infra.start(("nats", "valkey"), data_dir=tmp_path / "d", run_dir=tmp_path / "r") as second:
        assert second.urls == urls


def test_two_runners_never_share_a_data_folder(tmp_path: Path) -> None:
    with infra.start(("nats",), data_dir=tmp_path / "d", run_dir=tmp_path / "r") as running:
        with pytest.raises(CannotRun, match="in use by another runner"):
            infra.start(("nats",), data_dir=tmp_path / "d", run_dir=tmp_path / "r2")
        # The server holds the lock too, so it lasts as long as the server, whatever becomes of the runner.
        held = open_files(running.children["nats"].pid)

    assert str(tmp_path / "d" / ".lock") in held


def open_files(pid: int) -> list[str]:
    """Return the files that a process has open; one that closes while we look is passed over."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


@pytest.mark.slow
def test_postgres_keeps_its_rows_and_lives_under_a_long_path(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90) / ("y" * 90)
    for expected in ("1", "2"):
        with infra.start(("postgres",), data_dir=long / "d", run_dir=long / "r") as running:
            parts = urlsplit(running.urls["DATABASE_URL"])
            target = pgwire.Target("127.0.0.1", parts.port or 0, "roundhouse", parts.password or "", "roundhouse")
            with pgwire.connect(target) as connection:
                connection.query("CREATE TABLE IF NOT EXISTS runs (n int)")
                connection.query("INSERT INTO runs VALUES (1)")
                assert connection.query("SELECT count(*) FROM runs") == [[expected]]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another identity for PostgreSQL")
@pytest.mark.parametrize("mode", ["namespace", "nobody"])
async def test_postgres_runs_although_we_are_root(tmp_path: Path, mode: process.Identity) -> None:
    binary = locate.find_postgres().path
    if mode == "namespace" and not identity.can_use("namespace", binary):
        pytest.skip("user namespaces are not allowed here")
    site = make_site(tmp_path)
    server = PostgresServer(site, forced=mode)

    child = await start_ready(server, site)
    try:
        assert server.seat
        assert server.seat.identity == mode
        inside, outside = 65534, Path(f"/proc/{child.pid}").stat().st_uid
        assert outside == (inside if mode == "nobody" else 0)
        await server.probe()
    finally:
        await stop_child(child, server.stop_steps)
        for folder in site.outside:
            await asyncio.to_thread(subprocess.run, ["rm", "-rf", str(folder)], check=True)
    assert vanish([child.pid]) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "nobody"])
def test_servers_die_with_a_killed_runner(tmp_path: Path, mode: str) -> None:
    if mode == "nobody" and os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    program = (
        "import sys, time, functools\n"
        "from dev import infra\n"
        "from dev.infra import standalone, servers\n"
        f"mode = {mode!r}\n"
        "if mode == 'nobody':\n"
        "    standalone.RECIPES['postgres'] = functools.partial(servers.PostgresServer, forced='nobody')\n"
        f"running = infra.start(data_dir=standalone.Path({str(tmp_path / 'd')!r}), "
        f"run_dir=standalone.Path({str(tmp_path / 'r')!r}))\n"
        "print(*[child.pid for child in running.children.values()], *running.site.outside, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as runner:
        assert runner.stdout
        words = runner.stdout.readline().split()
        pids = [int(word) for word in words[:3]]
        backends = [int(p) for p in Path(f"/proc/{pids[-1]}/task/{pids[-1]}/children").read_text().split()]
        runner.send_signal(signal.SIGKILL)

    try:
        assert vanish(pids + backends) == []
    finally:
        for folder in words[3:]:
            subprocess.run(["rm", "-rf", folder], check=True)


def test_a_missing_server_is_one_sentence_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(locate, "_package_dir", lambda _name: None)
    monkeypatch.setattr(locate.sysconfig, "get_path", lambda _name: "/nonexistent")

    for finder, variable in zip(locate.FINDERS.values(), ("NATS_URL", "REDIS_URL", "DATABASE_URL"), strict=True):
        with pytest.raises(CannotRun, match=variable):
            finder()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another identity for PostgreSQL")
def test_blocked_namespaces_and_no_nobody_is_one_sentence() -> None:
    # Inside this namespace only uid 0 exists, and it may make no namespaces of its own.
    program = (
        "from dev.infra import identity, locate; from pathlib import Path; "
        "identity.choose_seat(locate.find_postgres().path, Path('/nonexistent/postgres'))"
    )
    blocked = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", blocked, sys.executable, program]

    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    if "unshare failed" in done.stderr:
        pytest.skip("user namespaces are not allowed here")
    assert "neither a user namespace nor the user nobody works here" in done.stderr
