"""The seed's names: each is where docs/seed-map.md says, importable, and has the test it names."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(?P<name>\w+)` \| `(?P<module>[\w.]+)` \| `(?P<test>[\w./]+)` \|$", re.MULTILINE)
ROWS = [match.groupdict() for match in ROW.finditer((ROOT / "docs" / "seed-map.md").read_text())]
NAMES = {
    "CircuitBreaker", "CircuitBreakerOpenError", "cache_result", "EventBus", "run_in_thread_pool", "run_in_process_pool",
    "gather_with_concurrency", "get_db",
}  # fmt: skip


def test_the_map_lists_every_name_of_the_seed() -> None:
    assert {row["name"] for row in ROWS} == NAMES


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_name_is_importable_and_used_by_its_test(row: dict[str, str]) -> None:
    assert callable(getattr(importlib.import_module(row["module"]), row["name"]))
    assert row["name"] in (ROOT / row["test"]).read_text()
