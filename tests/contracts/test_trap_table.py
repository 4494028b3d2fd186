"""The table of HTTP traps says what is tested, no more and no less."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "services" / "gateway" / "tests"
TABLE = (ROOT / "docs" / "http-traps.md").read_text()
NAMED = set(re.findall(r"`(test_\w+)`", TABLE.partition("## The traps")[2]))


def names_in(pattern: str) -> set[str]:
    found = set()
    for path in TESTS.glob(pattern):
        found |= set(re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE))
    return found


def test_every_test_that_the_table_names_exists():
    assert sorted(NAMED - names_in("test_*.py")) == []


def test_every_trap_test_is_in_the_table():
    assert sorted(names_in("test_trap_*.py") - NAMED) == []


def test_every_trap_has_its_row():
    numbers = {int(number) for number in re.findall(r"^\| (\d+) \|", TABLE, re.MULTILINE)}
    assert numbers == set(range(1, 23))
