"""How many CPUs this process may use: its affinity and its cgroup's quota, not the host's count."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")


def usable_cpus(*, cgroups: Path = CGROUPS, membership: Path = SELF) -> int:
    """Return the CPUs to plan for, at least 1; a quota of 2.5 CPUs counts as 2, which leaves the rest to the event loop."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups, membership)
    return max(1, min(affinity, int(quota) if quota is not None else affinity))


def _quota(cgroups: Path, membership: Path) -> float | None:
    """Return the smallest quota, in CPUs, of the cgroup and all above it (version 1 or 2); None where there is none."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    found: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _quotas_v2(cgroups, path)
        elif "cpu" in controllers.split(","):
            found += _quotas_v1(cgroups / controllers, path) or _quotas_v1(cgroups / "cpu", path)
    return min(found, default=None)


def _folders(root: Path, path: str) -> list[Path]:
    """List the folder of a cgroup and those above it; inside a container the path may be the host's, so the root always counts."""
    folder = root / path.strip("/")
    return [folder, *(above for above in folder.parents if above == root or root in above.parents), root]


def _quotas_v2(root: Path, path: str) -> list[float]:
    found = []
    for folder in _folders(root, path):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            found.append(int(words[0]) / int(words[1]))
    return found


def _quotas_v1(root: Path, path: str) -> list[float]:
    found = []
    for folder in _folders(root, path):
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            found.append(int(quota[0]) / int(period[0]))
    return found


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
