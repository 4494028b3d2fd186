"""Serving: a real process drains without losing a request, and says in one sentence why it cannot start."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # real processes

ROOT = Path(__file__).parents[2]

PROGRAM = textwrap.dedent(
    '''
    """A service small enough for a test: /slow answers when a file appears."""
    import asyncio
    import sys
    from pathlib import Path
    from contextlib import asynccontextmanager
    from typing import ClassVar
    from fastapi import APIRouter
    from pydantic_settings import SettingsConfigDict
    from shared.app import Opened, build
    from shared.errors import CannotStart
    from shared.serve import main
    from shared.settings import Settings

    class DemoSettings(Settings):
        model_config = SettingsConfigDict(env_prefix="RH_DEMO_")
        service: ClassVar[str] = "demo"

    router = APIRouter()

    @router.get("/slow")
    async def slow() -> str:
        while not Path(sys.argv[1]).exists():
            await asyncio.sleep(0.01)
        return "done"

    @asynccontextmanager
    async def resources(settings, runtime):
        if settings.replica == "refused":
            raise CannotStart("the seal is another one")
        if settings.replica == "broken":
            raise RuntimeError("a bug at the start")
        yield Opened(None)

    main(DemoSettings, lambda settings: build(settings, routers=[router], resources=resources, title="Demo"))
    '''
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(program: Path, port: int, **more: str) -> subprocess.Popen[bytes]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "RH_DEMO_PORT": str(port), **more}
    return subprocess.Popen(
        [sys.executable, program, program.with_suffix(".flag")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "demo.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def server(program: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    process = start(program, port)
    until(lambda: state_of(port) == "ready")
    yield process, port
    process.kill()
    process.communicate()


@pytest.fixture
def slow_call(server: tuple[subprocess.Popen[bytes], int]) -> Iterator[list[tuple[int, bytes]]]:
    """A call of /slow under way; its answer appears in the list."""
    _, port = server
    answers: list[tuple[int, bytes]] = []

    def call() -> None:
        try:
            answers.append(get(port, "/slow"))
        except (OSError, http.client.HTTPException):
            answers.append((0, b""))

    caller = threading.Thread(target=call)
    caller.start()
    until(lambda: b'active_connections{kind="http"} 2.0' in get(port, "/metrics")[1])
    yield answers
    caller.join(15)


def until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def state_of(port: int) -> str:
    try:
        return str(json.loads(get(port, "/ready")[1])["state"])
    except (OSError, http.client.HTTPException):
        return "away"


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_request_in_flight_at_sigterm_is_answered(
    server: tuple[subprocess.Popen[bytes], int], slow_call: list[tuple[int, bytes]], program: Path
) -> None:
    process, port = server

    process.send_signal(signal.SIGTERM)
    until(lambda: refused(port))
    assert slow_call == []
    program.with_suffix(".flag").touch()

    assert process.wait(15) == 0
    until(lambda: slow_call == [(200, b'"done"')])


def test_a_request_that_never_ends_is_cut_at_the_grace(program: Path) -> None:
    port = free_port()
    process = start(program, port, RH_DEMO_DRAIN_GRACE_S="1")
    until(lambda: state_of(port) == "ready")
    with socket.create_connection(("127.0.0.1", port)) as stuck:
        stuck.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: b'active_connections{kind="http"} 2.0' in get(port, "/metrics")[1])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)
    assert process.returncode == 0


def test_readiness_turns_false_first_and_a_second_signal_stops_at_once(program: Path) -> None:
    port = free_port()
    process = start(program, port, RH_DEMO_DRAIN_WAIT_S="300")
    until(lambda: state_of(port) == "ready")

    process.send_signal(signal.SIGTERM)
    until(lambda: state_of(port) == "draining")
    assert get(port, "/live")[0] == 200
    process.send_signal(signal.SIGTERM)

    process.communicate(timeout=15)
    assert process.returncode == 0


def test_bad_settings_are_one_sentence_and_exit_78(program: Path) -> None:
    process = start(program, 0, RH_DEMO_PROT="1")
    out, err = process.communicate(timeout=15)
    assert process.returncode == 78
    assert out == b""
    assert err.count(b"\n") == 1
    assert b"RH_DEMO_PROT" in err


def test_a_taken_port_is_one_line_and_exit_1(program: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(program, taken.getsockname()[1])
        out, _ = process.communicate(timeout=15)
    assert process.returncode == 1
    (line,) = [json.loads(text) for text in out.splitlines()]
    assert line["event"] == "start_failed"
    assert "Address already in use" in line["reason"]


def test_a_refused_start_is_one_sentence_without_a_traceback(program: Path) -> None:
    process = start(program, 0, RH_DEMO_REPLICA="refused")
    out, _ = process.communicate(timeout=15)
    assert process.returncode == 78
    (line,) = [found for text in out.splitlines() if (found := json.loads(text))["event"] == "start_failed"]
    assert line["reason"] == "the seal is another one"
    assert b"Traceback" not in out


def test_a_bug_at_the_start_is_told_once_and_whole(program: Path) -> None:
    process = start(program, 0, RH_DEMO_REPLICA="broken")
    out, _ = process.communicate(timeout=15)
    assert process.returncode == 1
    assert out.count(b"a bug at the start") == 1
    assert b"resources" in out


def test_a_service_that_speaks_no_websocket_starts_without_the_package(program: Path) -> None:
    # None in sys.modules is how Python is told that a module cannot be imported.
    program.write_text(PROGRAM.replace("import sys\n", 'import sys\nsys.modules["websockets"] = None\n', 1))
    port = free_port()
    process = start(program, port)
    until(lambda: state_of(port) == "ready")
    process.terminate()
    process.communicate(timeout=15)
    assert process.returncode == 0
