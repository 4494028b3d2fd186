"""The service as a process: it starts, drains, and leaves no child behind however it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc"),
]

POOL_PROGRAM = """
import asyncio, sys
from services.compute.pool.supervisor import ProcessPool
from services.compute.tests import faulty
from shared.deadline import Deadline

class Quiet:
    def waited(self, seconds): pass
    def finished(self, result): pass

async def main():
    pool = ProcessPool(slots=1, queue_max=4, observer=Quiet())
    pool.start()
    await pool.run(getattr(faulty, sys.argv[1]), (sys.argv[2],), Deadline.after(60))

asyncio.run(main())
"""


def until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "ENVIRONMENT": "test", **more}


@contextmanager
def service(**more: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    variables = environment(RH_COMPUTE_PORT=str(port), RH_COMPUTE_SLOTS="2", **more)
    process = subprocess.Popen(
        [sys.executable, "-m", "services.compute"], cwd=ROOT, env=variables, stdout=subprocess.PIPE
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(f"{url}/ready"))
        until(lambda: len(children_of(process.pid)) == 2)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def test_sigkill_of_the_service_leaves_no_child() -> None:
    with service() as (process, _):
        children = children_of(process.pid)
        process.kill()
        until(lambda: not any(map(is_running, children)))


@pytest.mark.parametrize("task", ["tell_and_spin", "tell_and_spin_in_c", "start_a_process_and_spin"])
def test_sigkill_leaves_no_busy_child_either(tmp_path: Path, task: str) -> None:
    program = [sys.executable, "-c", POOL_PROGRAM, task, str(tmp_path / "pid")]
    with subprocess.Popen(program, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT))) as process:
        until((tmp_path / "pid").exists)
        told = int((tmp_path / "pid").read_text())
        children = [told, *children_of(process.pid)]
        assert all(map(is_running, children))
        process.kill()
        until(lambda: not any(map(is_running, children)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_drains_exits_with_0_and_leaves_no_child(number: int) -> None:
    with service() as (process, _):
        children = children_of(process.pid)
        process.send_signal(number)
        assert process.wait(10) == 0
        assert not any(map(is_running, children))


def test_kill_9_of_every_child_is_healed() -> None:
    with service() as (process, url):
        before = children_of(process.pid)
        for child in before:
            os.kill(child, signal.SIGKILL)
        until(lambda: len(set(children_of(process.pid)) - set(before)) == 2)
        until(lambda: answers(f"{url}/ready"))
        assert "pool_slots 2.0" in httpx2.get(f"{url}/metrics", trust_env=False).text


def test_an_unknown_variable_is_refused_with_a_sentence() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "services.compute"],
        cwd=ROOT,
        env=environment(RH_COMPUTE_SLOTZ="2"),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert found.returncode == 78
    assert "RH_COMPUTE_SLOTZ" in found.stderr
    assert "Traceback" not in found.stderr
