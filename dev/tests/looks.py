"""How the runner's tests look at a fleet: its rows, its answers, its processes."""

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from dev.fleet import FLEET
from dev.process import start_time

# The whole status table, one replica of each.
ROWS = [
    *(server.name for server in FLEET.infra),
    *(service.name if service.public else f"{service.name}-1" for service in FLEET.services),
]


def until(holds: Callable[[], Any], within_s: float = 20.0) -> Any:
    limit = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < limit, "did not come true in time"
        time.sleep(0.05)
    return found


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def row(status: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in status["resources"] if row["name"] == name)
    return found


def all_gone(pids: list[int]) -> bool:
    return not any(start_time(pid) for pid in pids)
