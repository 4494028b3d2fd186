"""A checkout in miniature: the runner as it is, and fake services in the places of the real ones."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dev.fleet import FLEET
from dev.state import Home, read_record

ROOT = Path(__file__).parents[2]
# What the caller's shell may hold must not steer these fleets.
STEERING = ("NATS_URL", "REDIS_URL", "DATABASE_URL", "ENVIRONMENT", "LOG_LEVEL", "ROUNDHOUSE_STATE_DIR")


@dataclass
class Checkout:
    """A folder in which `python dev VERB` runs a fleet of fakes."""

    root: Path

    def command(self, *words: str) -> list[str]:
        return [str(self.root / ".venv" / "bin" / "python"), str(self.root / "dev"), *words]

    def environ(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in STEERING and not k.startswith("RH_")}
        return kept | more

    def dev(self, *words: str, expect: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end with captured pipes."""
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=60, env=self.environ(**env), check=False
        )
        assert expect is None or done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def up(self, *words: str, **env: str) -> dict[str, Any]:
        """Start the fleet in the background on a free port and return its status object."""
        found: dict[str, Any] = json.loads(self.dev("up", "--detach", "--port", "0", *words, **env).stdout)
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.dev("status", "--json", expect=None).stdout)
        return found

    def write_service(self, name: str, text: str) -> None:
        (self.root / "services" / name / "__main__.py").write_text(text)

    def processes(self) -> list[int]:
        """Every process of the running fleet, the runner among them."""
        record = read_record(Home(self.root / ".roundhouse"))
        assert record
        return [record.runner_pid, *map(int, record.processes)]


def make_checkout(root: Path) -> Checkout:
    ignore = shutil.ignore_patterns("tests", "__pycache__")
    shutil.copytree(ROOT / "dev", root / "dev", ignore=ignore)
    for lock in ("requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / lock, root / lock)
    (root / ".venv").symlink_to(Path(sys.prefix))
    for service in FLEET.services:
        folder = root / "services" / service.name
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "dev" / "tests" / "fake_service.py", folder / "__main__.py")
    (root / "shared").mkdir()
    (root / "shared" / "__init__.py").touch()
    return Checkout(root)


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    """A fresh checkout of fakes; whatever still runs in it at the end is stopped."""
    made = make_checkout(tmp_path / "checkout")
    yield made
    made.dev("down", expect=None)


@pytest.fixture
def new_checkout(tmp_path: Path) -> Iterator[Callable[[Path], Checkout]]:
    """Make a checkout at a place of the test's choice."""
    made: list[Checkout] = []

    def make(root: Path) -> Checkout:
        made.append(make_checkout(root))
        return made[-1]

    yield make
    for one in made:
        if one.root.exists():
            one.dev("down", expect=None)
