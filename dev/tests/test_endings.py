"""Facts about how a fleet ends, orderly or not: nothing is left behind, and the next start works."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from dev.fleet import FLEET
from dev.process import marked_pids, start_time
from dev.state import Home, read_record
from dev.tests.conftest import Checkout
from dev.tests.looks import ROWS, all_gone, get, row, until


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
    services = len(FLEET.stop_order)
    assert stopped[:services] == [name if name == "gateway" else f"{name}-1" for name in FLEET.stop_order]
    assert sorted(stopped[services:]) == ["nats", "postgres", "valkey"]
    assert any("waits for: " in line and "users-1" in line for line in lines)


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
