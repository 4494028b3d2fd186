"""A fleet of the tests' own: the one-machine runner on a free port, with its state in a folder that goes away with it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VERB_TIMEOUT_S = 150


class OwnFleet:
    """The verbs of the runner for one fleet; its state lies under `home`."""

    def __init__(self, home: Path, root: Path = ROOT) -> None:
        self.home = home
        self.root = root
        self.url = ""

    def verb(
        self, *arguments: str, timeout_s: float = VERB_TIMEOUT_S, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python3 dev ...` and return how it ended."""
        return subprocess.run(
            [sys.executable, str(self.root / "dev"), *arguments],
            # Tests ask more in a minute than one user may; what the limits do is tested where they are switched on.
            env={
                **os.environ,
                "ROUNDHOUSE_STATE_DIR": str(self.home),
                "RH_GATEWAY_EXEMPT": "127.0.0.1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def ok(self, *arguments: str, **environment: str) -> str:
        """Run a verb that must succeed; return what it printed."""
        done = self.verb(*arguments, **environment)
        assert done.returncode == 0, (
            f"dev {' '.join(arguments)} ended {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def up(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """Start the fleet detached on a free port and return its status."""
        status: dict[str, Any] = json.loads(
            self.ok("up", "--detach", "--port", "0", "--no-watch", "--json", *arguments, **environment)
        )
        self.url = status["gateway"]
        return status

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("status", "--json"))
        return found

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the status rows by name."""
        return {row["name"]: row for row in self.status()["resources"]}

    def runner_pid(self) -> int:
        """Return the pid of the detached runner, from the record that it keeps."""
        return int(json.loads((self.home / "run" / "fleet.json").read_text())["runner_pid"])

    def admin_token(self) -> str:
        return self.ok("token", "--admin").strip()


@contextmanager
def own_fleet(*arguments: str, **environment: str) -> Iterator[OwnFleet]:
    """A running ephemeral fleet, stopped and cleaned up at the end."""
    home = Path(tempfile.mkdtemp(prefix="rh-t-"))
    fleet = OwnFleet(home)
    try:
        fleet.up("--ephemeral", *arguments, **environment)
        yield fleet
    finally:
        down = fleet.verb("down")
        shutil.rmtree(home, ignore_errors=True)
    assert down.returncode == 0, down.stderr


def until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)  # the pace of looking, not a wait for something to be over


def is_alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
