""".ci/run with a `make` that only pretends: a failed lane makes it red, every lane is run and told of, nothing is left behind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = """#!/bin/sh
echo "made $1"
echo "$1 7 passed" > "$ROUNDHOUSE_LANES"
[ "$1" != "$FAILS" ]
"""
NEEDED = ("bash", "sh", "dirname", "mktemp", "rm", "cat", "sed", "timeout", "tail", "kill")


def run_ci(folder: Path, fails: str = "") -> subprocess.CompletedProcess[str]:
    """Run it in a checkout of its own, with no program on PATH but what every machine has."""
    programs = folder / "bin"
    programs.mkdir()
    for name in NEEDED:
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    (programs / "make").write_text(MAKE)
    (programs / "make").chmod(0o755)
    (folder / "house" / ".ci").mkdir(parents=True)
    (folder / "temporary").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / "house" / ".ci" / "run")
    environment = {"PATH": str(programs), "TMPDIR": str(folder / "temporary"), "FAILS": fails}
    return subprocess.run(
        [programs / "bash", folder / "house" / ".ci" / "run"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_green_says_at_its_end_what_ran(tmp_path: Path) -> None:
    done = run_ci(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.partition("== what ran\n")[2].splitlines()
    assert [line.partition(":")[2].partition(",")[0] for line in told if not line.startswith(" ")] == [" passed"] * 2
    assert [line for line in told if line.startswith(" ")] == ["  test 7 passed", "  e2e-compose 7 passed"]
    assert os.listdir(tmp_path / "temporary") == []


@pytest.mark.parametrize("fails", ["test", "e2e-compose"])
def test_a_failed_lane_is_red_and_the_others_are_run(tmp_path: Path, fails: str) -> None:
    done = run_ci(tmp_path, fails)
    assert done.returncode == 1
    assert {"made test", "made e2e-compose"} <= set(done.stdout.splitlines())
    told = done.stdout.partition("== what ran\n")[2]
    assert told.count("FAILED (1)") == 1
    assert told.count(" passed, ") == 1
