"""Facts about the verbs, on a whole fleet of fakes with real servers: what a person or a script sees."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dev.process import marked_pids, start_time
from dev.state import Home, read_record
from dev.tests.conftest import Checkout

ROWS = ["nats", "valkey", "postgres", "users-1", "realtime-1", "compute-1", "health-1", "gateway"]


def until(holds: Callable[[], Any], within_s: float = 20.0) -> Any:
    limit = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < limit, "did not come true in time"
        time.sleep(0.05)
    return found


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def row(status: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in status["resources"] if row["name"] == name)
    return found


def all_gone(pids: list[int]) -> bool:
    return not any(start_time(pid) for pid in pids)


def test_unknown_verbs_and_arguments_are_refused_with_usage(checkout: Checkout) -> None:
    assert "usage" in checkout.dev("fly", expect=2).stderr
    assert "port is a number" in checkout.dev("up", "--port", "x", expect=2).stderr


def test_a_taken_port_is_one_sentence_with_the_holder_and_the_fix(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = checkout.dev("up", "--detach", "--port", str(port), expect=1)

    assert f"Port {port} is taken by process {os.getpid()}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["--replicas", "orders=2"], {}, "no service: one of users, realtime"),
        (["--replicas", "users=many"], {}, "not SERVICE=COUNT"),
        (["--ephemeral", "--data-dir", "/tmp/x"], {}, "choose one"),
        ([], {"NATS_URL": "nats//nope"}, "NATS_URL is malformed"),
        ([], {"DATABASE_URL": "postgresql://h:notaport/x"}, "DATABASE_URL is malformed"),
        ([], {"ENVIRONMENT": "prod"}, "ENVIRONMENT is 'prod': set it to one of development, test, production"),
        ([], {"RH_USER_X": "1"}, "RH_USER_X belongs to no service"),
        ([], {"RH_USERS_PORT": "1"}, "RH_USERS_PORT is the runner's own"),
        (["--data-dir", "/dev/null/x"], {}, "cannot be used (Not a directory)"),
    ],
)
def test_bad_input_is_one_sentence_with_the_fix(
    checkout: Checkout, words: list[str], env: dict[str, str], said: str
) -> None:
    done = checkout.dev("up", "--detach", "--port", "0", *words, expect=None, **env)

    assert done.returncode != 0
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (checkout.root / ".roundhouse/run/fleet.json").exists()


def test_without_a_fleet_every_verb_says_so(checkout: Checkout) -> None:
    assert json.loads(checkout.dev("status", "--json", expect=3).stdout) == {"gateway": None, "resources": []}
    for words in (["restart", "users"], ["scale", "users=2"], ["token"]):
        assert "python3 dev up" in checkout.dev(*words, expect=3).stderr
    assert checkout.dev("down").stdout == "Nothing runs here.\n"


def test_doctor_finds_a_taken_port_ahead(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = checkout.dev("doctor", "--port", str(taken.getsockname()[1]), expect=1)

    assert "FAIL  port" in done.stdout
    assert "fix: Port" in done.stdout


@pytest.mark.slow
def test_a_detached_fleet_serves_and_down_leaves_nothing(checkout: Checkout, tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()

    # Captured pipes: this returns only because the background process keeps none of them.
    status = checkout.up("--ephemeral", "--replicas", "realtime=2", "--replicas", "users=1", "--json", TMPDIR=str(temp))

    assert set(status) == {"gateway", "resources"}
    names = [item["name"] for item in status["resources"]]
    assert names == [*ROWS[:4], "realtime-1", "realtime-2", *ROWS[5:]]
    for item in status["resources"]:
        assert {"name", "kind", "state", "pid", "port", "url", "ready_s"} <= set(item)
        assert item["kind"] == ("infra" if item["name"] in ROWS[:3] else "service")
        assert item["state"] == "ready"
        assert start_time(item["pid"])
        assert item["url"].endswith(f"127.0.0.1:{item['port']}")
    assert get(f"{status['gateway']}/realtime")["replica"] in ("realtime-1", "realtime-2")
    [folder] = temp.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert checkout.dev("status").stdout.startswith(f"Gateway {status['gateway']}")
    assert "users-1" in checkout.dev("logs", "users").stdout
    record = read_record(Home(checkout.root / ".roundhouse"))
    assert record
    assert record.temporary == [str(folder)]
    pids = checkout.processes()

    checkout.dev("down")

    assert all_gone(pids)
    assert marked_pids(record.mark) == []
    assert list(temp.iterdir()) == []
    assert not (checkout.root / ".roundhouse/run/fleet.json").exists()
    assert not (checkout.root / ".roundhouse/data").exists()
    assert checkout.dev("status", expect=3).stdout == "Nothing runs here.\n"


@pytest.mark.slow
def test_a_second_up_shows_the_fleet_or_refuses_other_arguments(checkout: Checkout) -> None:
    first = checkout.up()

    again = checkout.up()
    other = checkout.dev("up", "--detach", "--port", "0", "--replicas", "users=2", expect=2)

    assert [item["pid"] for item in again["resources"]] == [item["pid"] for item in first["resources"]]
    assert "other arguments" in other.stderr
    assert "replicas" in other.stderr
    assert "already running" in checkout.dev("up", "--port", "0").stdout.lower()


@pytest.mark.slow
def test_after_a_killed_runner_nothing_is_left_and_up_works_again(checkout: Checkout) -> None:
    first = checkout.up()
    pids = checkout.processes()

    os.kill(pids[0], signal.SIGKILL)

    until(lambda: all_gone(pids))
    second = checkout.up()
    assert row(second, "nats")["port"] == row(first, "nats")["port"]
    assert row(second, "users-1")["port"] == row(first, "users-1")["port"]
    assert get(f"{second['gateway']}/users")["replica"] == "users-1"


@pytest.mark.slow
def test_down_after_a_killed_runner_ends_leftovers_and_removes_the_temporary_folder(
    checkout: Checkout, tmp_path: Path
) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    checkout.up("--ephemeral", TMPDIR=str(temp))
    pids = checkout.processes()
    record = read_record(Home(checkout.root / ".roundhouse"))
    assert record
    # Something that outlived its service, known by the run's mark alone.
    stray = subprocess.Popen(["sleep", "600"], env={"ROUNDHOUSE_RUN": record.mark}, start_new_session=True)
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: all_gone(pids))

    checkout.dev("down")

    assert stray.wait(5) == -signal.SIGTERM
    assert list(temp.iterdir()) == []
    assert not (checkout.root / ".roundhouse/run/fleet.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_foreground_fleet_stops_in_order_on_a_signal(checkout: Checkout, number: signal.Signals) -> None:
    command = checkout.command("up", "--port", "0", "--ephemeral")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=checkout.environ()) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "cpu-intensive" in line:
                break
        pids = checkout.processes()
        process.send_signal(number)
        lines += process.stdout.readlines()

        assert process.wait(20) == 0

    assert all_gone(pids)
    stopped = [line.split()[1] for line in lines if " stopped" in line]
    assert stopped[:5] == ["gateway", "realtime-1", "compute-1", "users-1", "health-1"]
    assert sorted(stopped[5:]) == ["nats", "postgres", "valkey"]
    assert any("waits for: " in line and "users-1" in line for line in lines)


@pytest.mark.slow
def test_two_checkouts_never_share_a_data_folder(new_checkout: Callable[[Path], Checkout], tmp_path: Path) -> None:
    first, second = new_checkout(tmp_path / "one"), new_checkout(tmp_path / "two")
    data = str(tmp_path / "data")
    first.up("--data-dir", data)

    done = second.dev("up", "--detach", "--port", "0", "--data-dir", data, expect=1)

    assert "is in use by another runner (process" in done.stderr
    assert str(first.processes()[0]) in done.stderr


@pytest.mark.slow
def test_given_servers_replace_the_embedded_ones(
    checkout: Checkout, nats_url: str, redis_url: str, postgres_url: str
) -> None:
    status = checkout.up(NATS_URL=nats_url, REDIS_URL=redis_url, DATABASE_URL=postgres_url)

    for name in ROWS[:3]:
        found = row(status, name)
        assert (found["kind"], found["state"], found["pid"]) == ("infra", "ready", None)
        assert "@" not in found["url"]
    assert get(f"{status['gateway']}/users")["replica"] == "users-1"


@pytest.mark.slow
def test_a_service_that_cannot_start_is_told_with_its_log(checkout: Checkout) -> None:
    checkout.write_service("compute", "raise RuntimeError('no such luck')\n")

    done = checkout.dev("up", "--detach", "--port", "0", expect=1)

    assert "compute-1 failed: ended with exit code 1" in done.stderr
    assert "RuntimeError: no such luck" in done.stderr
    assert row(json.loads(done.stdout), "compute-1")["state"] == "failed"
    assert "compute-1" in checkout.dev("status").stdout


@pytest.mark.slow
def test_a_change_restarts_only_its_service_and_a_broken_one_keeps_the_old(checkout: Checkout) -> None:
    before = checkout.up()
    source = (checkout.root / "services/users/__main__.py").read_text()

    def replaced() -> dict[str, Any] | None:
        now = checkout.status()
        return now if row(now, "users-1")["pid"] != row(before, "users-1")["pid"] else None

    # The watcher begins once all are ready; writing again is what an editor does anyway.
    def touch_until_replaced() -> dict[str, Any] | None:
        checkout.write_service("users", source + "\n")
        time.sleep(0.5)
        return replaced()

    after = until(touch_until_replaced)

    for name in set(ROWS) - {"users-1"}:
        assert row(after, name)["pid"] == row(before, name)["pid"]

    until(lambda: row(checkout.status(), "users-1")["state"] == "ready")
    checkout.write_service("users", "def broken(:\n")
    noted = until(lambda: "the old one goes on" in row(now := checkout.status(), "users-1")["note"] and now)
    assert row(noted, "users-1")["state"] == "ready"
    assert "SyntaxError" in checkout.dev("logs", "users").stdout
    assert get(f"{noted['gateway']}/users")["replica"] == "users-1"


@pytest.mark.slow
def test_restart_and_scale_change_the_running_fleet(checkout: Checkout) -> None:
    before = checkout.up()

    checkout.dev("scale", "users=2")
    checkout.dev("restart", "users-1")
    checkout.dev("restart", "nats")

    after = checkout.status()
    assert row(after, "users-2")["state"] == "ready"
    assert row(after, "users-1")["pid"] != row(before, "users-1")["pid"]
    assert row(after, "nats")["pid"] != row(before, "nats")["pid"]
    assert row(after, "nats")["url"] == row(before, "nats")["url"]
    assert "one of nats" in checkout.dev("restart", "orders", expect=1).stderr


@pytest.mark.slow
def test_a_long_path_and_private_parents_are_fine(new_checkout: Callable[[Path], Checkout], tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)

    status = new_checkout(private / ("x" * 80) / ("y" * 90)).up()

    assert all(item["state"] == "ready" for item in status["resources"])


@pytest.mark.slow
def test_without_the_fork_server_the_fleet_is_the_same(checkout: Checkout) -> None:
    status = checkout.up("--no-forkserver", "--no-watch")

    assert [item["name"] for item in status["resources"]] == ROWS
    assert get(f"{status['gateway']}/users")["replica"] == "users-1"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming an ordinary user needs root")
def test_an_ordinary_user_runs_the_fleet(new_checkout: Callable[[Path], Checkout], tmp_path: Path) -> None:
    base = Path("/var/tmp") / f"rh-user-{os.getpid()}"
    checkout = new_checkout(base / "checkout")
    # The interpreter of this test may sit in root's own folder: reading is all this capability allows.
    reading = "+dac_read_search"
    become = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    become += ["--inh-caps", reading, "--ambient-caps", reading, *checkout.command("up", "--detach", "--port", "0")]
    try:
        subprocess.run(["chown", "-R", "65534:65534", str(base)], check=True)

        done = subprocess.run(
            become, capture_output=True, text=True, timeout=60, env=checkout.environ(HOME=str(base)), check=False
        )

        assert done.returncode == 0, done.stderr
        status = json.loads(done.stdout)
        assert {Path(f"/proc/{item['pid']}").stat().st_uid for item in status["resources"]} == {65534}
        checkout.dev("down")
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.mark.slow
def test_a_second_interrupt_kills_at_once(checkout: Checkout) -> None:
    # A service that never drains: only the second signal, or ten seconds, ends it.
    source = (checkout.root / "services/users/__main__.py").read_text()
    checkout.write_service("users", source.replace("await stop.wait()", "await asyncio.Event().wait()"))
    command = checkout.command("up", "--port", "0", "--ephemeral")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=checkout.environ()) as process:
        assert process.stdout
        for line in process.stdout:
            if "cpu-intensive" in line:
                break
        pids = checkout.processes()
        process.send_signal(signal.SIGINT)
        for line in process.stdout:
            if "users-1" in line and "draining" in line:
                break
        process.send_signal(signal.SIGINT)

        assert process.wait(5) == 130

    assert all_gone(pids)


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_stop_the_fleet(checkout: Checkout) -> None:
    command = checkout.command("up", "--port", "0", "--ephemeral")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=checkout.environ()) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()

        until(lambda: (rows := checkout.status()["resources"]) and all(item["state"] == "ready" for item in rows))

        checkout.dev("down")
        assert process.wait(5) == 0


@pytest.mark.slow
def test_a_terminal_gets_a_live_table(checkout: Checkout) -> None:
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.clear()
        os.environ.update(checkout.environ(TERM="xterm", COLUMNS="150", LINES="50"))
        os.execv(checkout.command()[0], checkout.command("up", "--port", "0", "--ephemeral"))
    seen = ""
    while "cpu-intensive" not in seen:
        seen += os.read(terminal, 65536).decode(errors="replace")
    os.write(terminal, b"\x03")
    with os.fdopen(terminal, "rb", buffering=0) as rest:
        try:
            while chunk := rest.read(65536):
                seen += chunk.decode(errors="replace")
        except OSError:
            pass  # how Linux says that the other end of a terminal closed

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert all(heading in seen for heading in ("RESOURCE", "STATE", "PORT", "READY", "RESTARTS", "NOTE"))
    assert "waits for: " in seen
    assert "Traceback" not in seen


@pytest.mark.slow
def test_a_start_is_given_up_at_once_and_leaves_nothing(checkout: Checkout, tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    command = checkout.command("up", "--port", "0", "--ephemeral")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=checkout.environ(TMPDIR=str(temp))
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if "postgres" in line and "starting" in line:
                break
        record = read_record(Home(checkout.root / ".roundhouse"))
        assert record

        process.send_signal(signal.SIGTERM)

        assert process.wait(5) == 0
    until(lambda: marked_pids(record.mark) == [], 5.0)
    assert list(temp.iterdir()) == []
