"""What a tree of processes has used, as the Linux kernel counts it: scheduler time of every thread, and memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

ThreadTimes = Mapping[tuple[int, int], int]
"""Nanoseconds on a CPU by (process id, thread id)."""


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU time between two readings; `threads_ended` of them ended meanwhile, so that their last share is not in it."""

    ns: int
    threads_ended: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes, and those with each shared page divided by its users (PSS)."""

    rss_bytes: int
    pss_bytes: int


def tree(pid: int, proc: Path = PROC) -> list[int]:
    """Return `pid` and all its descendants that run now."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        waiting.extend(children.get(current, ()))
    return sorted(found)


def _parent(entry: Path) -> int | None:
    try:
        stat = (entry / "stat").read_text()
    except OSError:
        return None  # ended between the listing and the reading
    # The name in parentheses may hold spaces and parentheses itself: what counts comes after the last one.
    return int(stat.rpartition(")")[2].split()[1])


def thread_times(pids: Iterable[int], proc: Path = PROC) -> dict[tuple[int, int], int]:
    """Read `schedstat` of every thread: its first number is the time on a CPU in ns (proc(5)).

    The file of the process itself tells of its first thread only.
    """
    times = {}
    for pid in pids:
        try:
            threads = [int(entry.name) for entry in (proc / str(pid) / "task").iterdir()]
        except OSError:
            continue
        for thread in threads:
            try:
                text = (proc / str(pid) / "task" / str(thread) / "schedstat").read_text()
            except OSError:
                continue
            times[pid, thread] = int(text.split()[0])
    return times


def spent(before: ThreadTimes, after: ThreadTimes) -> Spent:
    """Return the CPU time between two readings; a thread that is new counts from zero."""
    ns = sum(now - before.get(thread, 0) for thread, now in after.items())
    return Spent(ns, len(before.keys() - after.keys()))


def memory(pids: Iterable[int], proc: Path = PROC) -> Memory:
    """Sum the memory of processes, from `smaps_rollup`."""
    rss = pss = 0
    for pid in pids:
        try:
            text = (proc / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        rows = {name: int(rest.split()[0]) for name, _, rest in (row.partition(":") for row in text.splitlines()[1:])}
        rss += rows["Rss"] * 1024
        pss += rows["Pss"] * 1024
    return Memory(rss, pss)
