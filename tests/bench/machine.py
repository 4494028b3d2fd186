"""Facts about the machine and the code that a figure is worth nothing without."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from tests.bench.processes import ROOT


def facts() -> dict[str, Any]:
    """Return the machine as a row of plain values."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_1m": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    names = (row.partition(":")[2].strip() for row in text.splitlines() if row.startswith("model name"))
    return next(names, platform.machine())


def commit() -> str:
    """Return the commit that is measured, marked where files differ from it; `unknown` outside a checkout."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    # The results themselves change with every run.
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)tests/bench/results")
    return f"{head}-changed" if changed else head


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
