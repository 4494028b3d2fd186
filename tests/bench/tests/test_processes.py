"""The processes of a benchmark: where they run, what they inherit, and that none is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.errors import BenchError
from tests.bench.processes import ROOT, free_port, stand

pytestmark = [
    pytest.mark.slow,  # real processes
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="benchmarks run on Linux"),
]

SERVER = """
import os, socket, subprocess, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
links = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2, *range(3, 40)) if os.path.exists(f"/proc/self/fd/{fd}")]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, links, os.sched_getaffinity(0), flush=True)
time.sleep(60)
"""

BENCH = """
import os, sys, time
from pathlib import Path
from tests.bench.processes import stand
with stand(Path(sys.argv[1])) as found:
    running = found.start("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], core=found.cores.subject)
    print(running.pid, flush=True)
    time.sleep(60)
"""


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except FileNotFoundError:
        return True


def wait_gone(pid: int) -> None:
    until = time.monotonic() + 10
    while not is_gone(pid):
        assert time.monotonic() < until, f"{pid} still runs"
        time.sleep(0.02)


def test_a_server_runs_on_its_core_inherits_nothing_and_takes_its_children_along(tmp_path):
    own = os.sched_getaffinity(0)
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        with stand(tmp_path) as found:
            port = free_port()
            running = found.start("server", [sys.executable, "-c", SERVER, str(port)], core=found.cores.subject)
            found.wait_ready(running, port)
            until = time.monotonic() + 10
            while not running.log.read_text().endswith("\n"):
                assert time.monotonic() < until
                time.sleep(0.02)
            child, _, rest = running.log.read_text().partition(" ")
            assert f"pipe:[{os.fstat(write).st_ino}]" not in rest
            assert rest.strip().endswith(f"{{{found.cores.subject}}}")
            assert not is_gone(int(child))
    finally:
        os.close(read)
        os.close(write)
    assert running.process.returncode is not None
    wait_gone(int(child))
    assert os.sched_getaffinity(0) == own


def test_a_server_that_ends_while_starting_is_told_with_its_last_words(tmp_path):
    with stand(tmp_path) as found:
        running = found.start("server", [sys.executable, "-c", "raise SystemExit('bad port')"], core=found.cores.load)
        with pytest.raises(BenchError, match="server ended 1 while starting: bad port"):
            found.wait_ready(running, free_port())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_benchmark_that_is_stopped(number, tmp_path):
    bench = subprocess.Popen(
        [sys.executable, "-c", BENCH, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        sleeper = int(bench.stdout.readline())
        bench.send_signal(number)
        bench.communicate(timeout=15)
    finally:
        bench.kill()
        bench.communicate()
    wait_gone(sleeper)
