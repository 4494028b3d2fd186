"""The file of a benchmark: its schema, its ratios, and where it lies."""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import machine
from tests.bench.errors import BenchError

RESULTS = Path(__file__).with_name("results")
FIELDS = {"name": str, "commit": str, "date": str, "machine": dict, "raw": dict, "ratios": dict}


def assemble(
    name: str, facts: Mapping[str, Any], raw: Mapping[str, Any], ratios: Mapping[str, float]
) -> dict[str, Any]:
    """Return a result of this commit and moment. `facts`: the machine as it was before the run loaded it."""
    found = {
        "name": name,
        "commit": machine.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(facts),
        "raw": dict(raw),
        "ratios": {key: rounded(value) for key, value in sorted(ratios.items())},
    }
    check(found)
    return found


def check(result: Mapping[str, Any]) -> None:
    """Raises BenchError where a result is not of the schema: exactly its fields, every ratio a finite number."""
    if set(result) != set(FIELDS):
        raise BenchError(f"a result has the fields {', '.join(FIELDS)}, not {', '.join(map(str, result))}")
    for field, kind in FIELDS.items():
        if not isinstance(result[field], kind):
            raise BenchError(f"{field} must be of type {kind.__name__}")
    for key, value in result["ratios"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise BenchError(f"ratio {key} must be a number, not {value!r}")


def rounded(value: float, digits: int = 4) -> float:
    """Keep as many significant digits as such a measurement can have."""
    return float(f"{value:.{digits}g}")


def ratio_of_medians(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Divide the median of our rounds by the median of theirs. Raises BenchError where there is nothing to divide by."""
    own, other = list(ours), list(theirs)
    if not own or not other or median(other) <= 0:
        raise BenchError("a ratio needs rounds of both sides")
    return median(own) / median(other)


def save(result: Mapping[str, Any], path: Path) -> None:
    """Write the file whole or not at all."""
    check(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n")
    fresh.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a result. Raises BenchError."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise BenchError(f"there is no {path.name} yet: make bench NAME={path.stem}") from None
    except ValueError as error:
        raise BenchError(f"{path.name} is not JSON: {error}") from None
    check(found)
    return dict(found)


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(header)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
