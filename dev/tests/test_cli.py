"""Facts about the verbs, on a whole fleet of fakes with real servers: what a person or a script sees."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dev.tests.conftest import Checkout
from dev.tests.looks import ROWS, get, row, until

pytestmark = pytest.mark.slow  # real processes


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
        (["--replicas", "no-such=2"], {}, "no service: one of users, realtime"),
        (["--replicas", "users=many"], {}, "not SERVICE=COUNT"),
        (["--ephemeral", "--data-dir", "/tmp/x"], {}, "choose one"),
        ([], {"NATS_URL": "nats//nope"}, "NATS_URL is malformed"),
        ([], {"DATABASE_URL": "postgresql://h:notaport/x"}, "DATABASE_URL is malformed"),
        ([], {"ENVIRONMENT": "prod"}, "ENVIRONMENT is 'prod': set it to one of development, test, production"),
        ([], {"RH_NO_SUCH_X": "1"}, "RH_NO_SUCH_X belongs to no service"),
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
def test_a_second_up_shows_the_fleet_or_refuses_other_arguments(checkout: Checkout) -> None:
    first = checkout.up()

    again = checkout.up()
    other = checkout.dev("up", "--detach", "--port", "0", "--replicas", "users=2", expect=2)

    assert [item["pid"] for item in again["resources"]] == [item["pid"] for item in first["resources"]]
    assert "other arguments" in other.stderr
    assert "replicas" in other.stderr
    assert "already running" in checkout.dev("up", "--port", "0").stdout.lower()


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
    assert "one of nats" in checkout.dev("restart", "no-such", expect=1).stderr


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
