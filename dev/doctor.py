"""The verb `doctor`: looks for what would keep a fleet from running here, each finding with its fix."""

import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev import bootstrap, external, preflight, state
from dev.errors import CannotRun
from dev.fleet import Fleet
from dev.infra import identity, locate
from dev.options import common_settings

OPEN_FILES_MIN = 1024
GLIBC_MIN = (2, 28)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `fix` is empty when it is well. `is_fatal`: `up` would fail."""

    subject: str
    seen: str
    fix: str = ""
    is_fatal: bool = True

    @property
    def is_well(self) -> bool:
        return not self.fix


def examine(checkout: Path, fleet: Fleet, *, port: int) -> Iterator[Finding]:
    """Look at everything; nothing is changed, but for making the state folder to see whether that works."""
    yield _python()
    yield _environment(checkout)
    yield from _binaries(fleet)
    yield _glibc()
    yield _root()
    yield _port(checkout, port)
    yield from _folders(checkout)
    yield _open_files()
    yield _variables(fleet)


def report(findings: Iterator[Finding]) -> int:
    """Print each finding; return 1 when one would keep `up` from working."""
    code = 0
    for finding in findings:
        mark = "ok  " if finding.is_well else "FAIL" if finding.is_fatal else "note"
        print(f"{mark}  {finding.subject:<12} {finding.seen}")
        if not finding.is_well:
            print(f"      {'':<12} fix: {finding.fix}")
            code = max(code, int(finding.is_fatal))
    return code


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} at {sys.executable}")


def _environment(checkout: Path) -> Finding:
    place = bootstrap.Place(checkout)
    if bootstrap.is_ready(place):
        return Finding("packages", f"{place.venv} holds what the lock names")
    how = "uv" if shutil.which("uv") else "pip"
    return Finding("packages", f".venv is not up to date ({how} will make it)", "python3 dev setup", is_fatal=False)


def _binaries(fleet: Fleet) -> Iterator[Finding]:
    for server in fleet.infra:
        if os.environ.get(server.variable):
            yield Finding(server.name, f"given by {server.variable}")
            continue
        try:
            binary = locate.FINDERS[server.name]()
        except CannotRun as error:
            yield Finding(server.name, "no server binary", str(error))
        else:
            yield Finding(server.name, f"{binary.source}: {binary.path}")


def _glibc() -> Finding:
    name, version = platform.libc_ver()
    if name != "glibc":
        return Finding(
            "libc", name or platform.system(), "put the three servers on PATH if wheels do not fit", is_fatal=False
        )
    numbers = tuple(int(part) for part in version.split(".")[:2])
    fix = "" if numbers >= GLIBC_MIN else "the server wheels need glibc 2.28: put the servers on PATH"
    return Finding("libc", f"glibc {version}", fix)


def _root() -> Finding:
    if os.geteuid() != 0:
        return Finding("user", "an ordinary user: PostgreSQL runs as that")
    try:
        binary = locate.find_postgres().path
    except CannotRun:
        return Finding("user", "root", "PostgreSQL refuses root; its binary is missing as said above", is_fatal=False)
    if identity.can_use("namespace", binary):
        return Finding("user", "root: PostgreSQL will run in a user namespace")
    if not identity.is_reachable(binary) or identity.can_use("nobody", binary):
        return Finding("user", "root, user namespaces are blocked: PostgreSQL will run as nobody")
    return Finding(
        "user", "root, neither user namespaces nor nobody work", "run as an ordinary user, or set DATABASE_URL"
    )


def _port(checkout: Path, port: int) -> Finding:
    record = state.read_record(state.Home.of(checkout))
    if record is not None and record.is_alive:
        return Finding("port", f"a fleet of this checkout runs at {record.gateway}")
    try:
        preflight.claim_port(port).close()
    except CannotRun as error:
        return Finding("port", f"{port} is not free", str(error))
    return Finding("port", f"{port} is free")


def _folders(checkout: Path) -> Iterator[Finding]:
    root = state.Home.of(checkout).root
    for subject, check in (("folder", preflight.check_folder), ("disk", preflight.check_disk)):
        try:
            check(root)
        except CannotRun as error:
            yield Finding(subject, str(root), str(error))
        else:
            free = shutil.disk_usage(root).free // 2**30
            yield Finding(subject, f"{root} is writable" if subject == "folder" else f"{free} GiB free")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fix = "" if soft >= OPEN_FILES_MIN else f"ulimit -n {min(65536, hard)}"
    return Finding("descriptors", f"{soft} may be open at once", fix, is_fatal=False)


def _variables(fleet: Fleet) -> Finding:
    try:
        common_settings(os.environ, fleet)
        given = external.given_urls(fleet.infra, os.environ)
    except CannotRun as error:
        return Finding("variables", "a variable does not fit", str(error))
    return Finding("variables", f"in use: {', '.join(given)}" if given else "none that changes the fleet")
