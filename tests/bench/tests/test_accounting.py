"""CPU time and memory of a tree of processes, on a made-up /proc and on a real child."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.accounting import Spent, memory, spent, thread_times, tree


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """10 has the children 11 and 12, 12 has 13; 20 is a stranger. A name may hold anything."""
    for pid, parent, name in ((10, 1, "nginx"), (11, 10, "a) R 20 (b"), (12, 10, "c d"), (13, 12, "e"), (20, 1, "f")):
        (tmp_path / str(pid) / "task").mkdir(parents=True)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} {pid} 0\n")
    (tmp_path / "uptime").write_text("1 1")
    return tmp_path


def thread(proc: Path, pid: int, tid: int, ns: int) -> None:
    (proc / str(pid) / "task" / str(tid)).mkdir(exist_ok=True)
    (proc / str(pid) / "task" / str(tid) / "schedstat").write_text(f"{ns} 5 6\n")


def test_the_tree_holds_all_descendants_and_no_stranger(proc):
    assert tree(10, proc) == [10, 11, 12, 13]
    assert tree(12, proc) == [12, 13]


def test_a_process_that_ended_meanwhile_is_no_error(proc):
    (proc / "11" / "stat").unlink()
    assert tree(10, proc) == [10, 12, 13]
    assert thread_times([99], proc) == {}


def test_cpu_time_is_that_of_all_threads_of_all_processes(proc):
    thread(proc, 10, 10, 1_000)
    thread(proc, 10, 15, 2_000)
    thread(proc, 11, 11, 4_000)
    before = thread_times([10, 11], proc)
    assert before == {(10, 10): 1_000, (10, 15): 2_000, (11, 11): 4_000}
    thread(proc, 10, 15, 2_500)
    thread(proc, 11, 16, 70)
    assert spent(before, thread_times([10, 11], proc)) == Spent(ns=570, threads_ended=0)


def test_a_thread_that_ended_is_told_and_its_past_is_not_subtracted():
    assert spent({(1, 1): 100, (1, 2): 900}, {(1, 1): 150}) == Spent(ns=50, threads_ended=1)


def test_memory_is_summed_over_processes(proc):
    for pid, rss, pss in ((10, 100, 40), (11, 10, 4)):
        (proc / str(pid) / "smaps_rollup").write_text(
            f"55e0-7ffd ---p 0000 00:00 0   [rollup]\nRss:      {rss} kB\nPss:   {pss} kB\nPss_Dirty: 1 kB\n"
        )
    found = memory([10, 11], proc)
    assert (found.rss_bytes, found.pss_bytes) == (110 * 1024, 44 * 1024)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel counts no schedstat")
def test_a_real_child_that_works_is_seen_working():
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys\nsys.stdin.readline()\nfor _ in range(300_000): pass\nprint(flush=True)\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert child.pid in tree(os.getpid())
        before = thread_times([child.pid])
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        assert spent(before, thread_times([child.pid])).ns > 100_000
        assert memory([child.pid]).rss_bytes >= memory([child.pid]).pss_bytes > 0
    finally:
        child.kill()
        child.communicate()
