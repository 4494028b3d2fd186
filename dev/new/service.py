"""The two verbs: a service is put into the checkout, or taken out, whole; when a step fails everything is as it was."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dev.errors import CannotRun
from dev.fleet import Fleet
from dev.new.names import check_name, check_removable
from dev.new.places import PLACES

TEMPLATE = Path(__file__).with_name("template")
SUFFIX = ".template"
DERIVED = "openapi.json"
"""Made from the service's code, so never lost."""

CHART = "charts/roundhouse/values.schema.json"
OF_CHART = (CHART, "charts/roundhouse/README.md")
"""What the chart's generator writes; the table of values does not name services."""

STEP_TIMEOUT_S = 120.0

_DESCRIBE = """
import json, sys
from services.{name}.app import create
from services.{name}.settings import {Name}Settings
found = create({Name}Settings(environment="test")).fastapi.openapi()
sys.stdout.write(json.dumps(found, indent=2, sort_keys=True) + "\\n")
"""


def render(name: str) -> dict[str, str]:
    """Return the new files' texts by path from the checkout."""
    words = {"@name@": name, "@Name@": name.capitalize(), "@NAME@": name.upper()}

    def filled(text: str) -> str:
        for token, word in words.items():
            text = text.replace(token, word)
        return text

    found = {}
    for folder, target in (("service", f"services/{name}"), ("e2e", "tests/e2e")):
        for path in sorted((TEMPLATE / folder).rglob(f"*{SUFFIX}")):
            relative = path.relative_to(TEMPLATE / folder).as_posix().removesuffix(SUFFIX)
            found[filled(f"{target}/{relative}")] = filled(path.read_text())
    return found


def add(name: str, fleet: Fleet, checkout: Path) -> list[str]:
    """Write the service and its entries; return the paths written and changed. Raises CannotRun, then nothing has changed."""
    check_name(name, fleet)
    files = render(name)
    taken = next((path for path in (f"services/{name}", *files) if (checkout / path).exists()), None)
    if taken:
        raise CannotRun(f"{taken} exists already: choose another name, or move it away.")
    routes = (checkout / "services/gateway/domain/defaults.py").read_text()
    if f'path="/{name}"' in routes or f'path="/{name}/' in routes:
        raise CannotRun(
            f"the path /{name} is routed already in services/gateway/domain/defaults.py: choose another name."
        )
    changed = _edited(name, checkout, is_new=True)
    with _told(), _all_or_nothing(checkout, [*changed, *OF_CHART], new=[f"services/{name}", *files]):
        _write(checkout, files | changed)
        described = _python(
            checkout, "the new service", "-W", "error", "-c", _DESCRIBE.format(name=name, Name=name.capitalize())
        )
        _write(checkout, {f"services/{name}/{DERIVED}": described})
        _python(checkout, "charts/generate.py", "charts/generate.py")
    return [f"services/{name}/", *(path for path in files if not path.startswith("services/")), *changed, CHART]


def remove(name: str, fleet: Fleet, checkout: Path, *, force: bool = False) -> list[str]:
    """Take the service and its entries out; return the paths removed and changed.

    Raises CannotRun, then nothing has changed: for the five, and without `force` for files that only this folder has.
    """
    check_removable(name, fleet)
    if not force and (lost := _only_here(name, checkout)):
        raise CannotRun(
            f"{', '.join(lost[:5])}{' and more' if len(lost) > 5 else ''} would be lost, git has it in no commit: "
            "commit it, or say --force."
        )
    changed = _edited(name, checkout, is_new=False)
    gone = [f"services/{name}", *(path for path in render(name) if not path.startswith("services/"))]
    with _told():
        with _all_or_nothing(checkout, [*changed, *OF_CHART], new=()):
            _write(checkout, changed)
            _python(checkout, "charts/generate.py", "charts/generate.py")
        _delete(checkout, gone)
    return [f"services/{name}/", *gone[1:], *changed, CHART]


def _edited(name: str, checkout: Path, *, is_new: bool) -> dict[str, str]:
    found = {}
    for place in PLACES:
        text = (checkout / place.path).read_text()
        try:
            edited = (place.put_in if is_new else place.take_out)(text, name)
        except CannotRun as error:
            raise CannotRun(f"{place.path}: {error}") from error
        if edited != text:
            found[place.path] = edited
    return found


def _write(checkout: Path, texts: Mapping[str, str]) -> None:
    for path, text in texts.items():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(text)


def _delete(checkout: Path, paths: Sequence[str]) -> None:
    for path in map(checkout.joinpath, paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        raise CannotRun(f"{error.filename}: {error.strerror}: make the checkout writable for this user.") from error


@contextmanager
def _all_or_nothing(checkout: Path, changing: Sequence[str], *, new: Sequence[str]) -> Iterator[None]:
    """Put back the texts of `changing` and remove `new` when the block does not end well."""
    before = {path: (checkout / path).read_text() for path in changing}
    try:
        yield
    except BaseException:
        _write(checkout, before)
        _delete(checkout, new)
        raise


def _python(checkout: Path, what: str, *arguments: str) -> str:
    """Run a program of the checkout with this interpreter and return what it printed. Raises CannotRun."""
    # Bytecode would stay behind after `remove`; what this shell tells services must not get into a description.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CannotRun(f"nothing was changed, because {what} failed ({reason[:300]}): make it work first.")
    return done.stdout


def _only_here(name: str, checkout: Path) -> list[str]:
    """Return the service's files whose content is neither in the last commit nor what `new` would write again."""
    texts = render(name)
    paths = [f"services/{name}", *(path for path in texts if not path.startswith("services/"))]
    found = [
        path.relative_to(checkout).as_posix()
        for start in map(checkout.joinpath, paths)
        for path in (start.rglob("*") if start.is_dir() else (start,))
        if path.is_file() and "__pycache__" not in path.parts and path.name != DERIVED
    ]
    committed = _git_files(checkout, "ls-tree -r HEAD", paths) - _git_files(checkout, "diff --relative HEAD", paths)
    return [
        path for path in sorted(found) if path not in committed and not _is_as_written(checkout / path, texts.get(path))
    ]


def _is_as_written(path: Path, text: str | None) -> bool:
    return text is not None and path.read_bytes() == text.encode()


def _git_files(checkout: Path, command: str, paths: list[str]) -> set[str]:
    """Return the paths that git names; none where it cannot say."""
    words = ["git", *command.split(), "--name-only", "-z", "--", *paths]
    try:
        done = subprocess.run(words, cwd=checkout, capture_output=True, timeout=STEP_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return set()
    return set(os.fsdecode(done.stdout).split("\0")) if done.returncode == 0 else set()
