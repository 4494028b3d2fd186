"""`python -m tests.bench NAME` runs a benchmark, `python -m tests.bench table NAME` shows its last result in Markdown."""

import argparse
import fcntl
import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tests.bench import results
from tests.bench.errors import BenchError
from tests.bench.peers import STATE

SCENARIOS = ("gateway", "users")
"""Modules of this package with `add_options`, `run` and `table`."""


def main(argv: Sequence[str]) -> int:
    arguments = list(argv)
    verb = "table" if arguments[:1] == ["table"] else "run"
    if verb == "table":
        del arguments[0]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    if name not in SCENARIOS:
        said = f"{name} is no benchmark; " if name else ""
        print(f"{said}known are: {', '.join(SCENARIOS)}. For example: make bench NAME={SCENARIOS[0]}", file=sys.stderr)
        return 2
    scenario = importlib.import_module(f"tests.bench.{name}")
    try:
        return _table(name, scenario, arguments) if verb == "table" else _run(name, scenario, arguments)
    except BenchError as error:
        print(f"bench {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"bench {name}: stopped", file=sys.stderr)
        return 130


def _run(name: str, scenario: ModuleType, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"bench {name}", description=scenario.__doc__)
    scenario.add_options(parser)
    parser.add_argument("--output", type=Path, help="where the result goes, whole or not")
    options = parser.parse_args(arguments)
    STATE.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (STATE / "busy").open("w") as busy:
        try:
            fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError("another benchmark runs in this checkout; both would measure the other") from None
        for left in STATE.glob("run-*"):
            shutil.rmtree(left)  # of a run that was killed
        result, is_whole = scenario.run(options, lambda line: print(line, flush=True))
    path = options.output or _place(name, is_whole=is_whole)
    results.save(result, path)
    print(f"\n{scenario.table(result)}\n")
    for key, value in result["ratios"].items():
        print(f"{key:<44} {value:g}")
    print(f"\nwritten to {path}" + ("" if is_whole else " (part of a run: not the result that counts)"))
    return 0


def _table(name: str, scenario: ModuleType, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"bench table {name}")
    parser.add_argument("--file", type=Path, default=_place(name, is_whole=True))
    print(scenario.table(results.load(parser.parse_args(arguments).file)))
    return 0


def _place(name: str, *, is_whole: bool) -> Path:
    """A run of some rows must not replace the result that the README quotes."""
    return (results.RESULTS if is_whole else STATE) / f"{name}.json"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
