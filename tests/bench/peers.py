"""Where the programs come from that are measured beside ours: Debian packages on PATH, wheels in an environment of their own."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench.errors import BenchError, Missing
from tests.bench.processes import ROOT

LOCK = Path(__file__).with_name("peers.lock")
STATE = ROOT / ".roundhouse" / "bench"
INSTALL_TIMEOUT_S = 900

PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk"}
"""Debian packages by program."""


def missing_packages() -> list[str]:
    """Return the Debian packages whose programs are not on PATH."""
    return [package for program, package in PACKAGES.items() if _on_path(program) is None]


def find(program: str) -> Path:
    """Return a program of a Debian package. Raises Missing."""
    found = _on_path(program)
    if found is None:
        raise Missing(f"{program} is not installed: apt-get install -y {PACKAGES[program]}")
    return found


def _on_path(program: str) -> Path | None:
    # Debian puts servers where a plain user's PATH does not look.
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


class Wheels:
    """An environment of peers from PyPI, named like its lock file and installed once per lock by hash."""

    def __init__(self, state: Path = STATE, lock: Path = LOCK) -> None:
        self._folder = state / lock.stem
        self._lock = lock

    @property
    def python(self) -> Path:
        return self._folder / "bin" / "python"

    @property
    def is_installed(self) -> bool:
        stamp = self._folder / "stamp"
        return stamp.is_file() and stamp.read_text() == self._wanted()

    def _wanted(self) -> str:
        return hashlib.sha256(f"{sys.version}\n{self._lock.read_text()}".encode()).hexdigest()

    def install(self) -> None:
        """Make the environment anew unless it is the lock's already. Raises BenchError with the installer's words."""
        self._folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._folder.with_suffix(".busy").open("w") as busy:
            fcntl.flock(busy, fcntl.LOCK_EX)
            if self.is_installed:
                return
            shutil.rmtree(self._folder, ignore_errors=True)
            uv = Path(sys.executable).with_name("uv")
            if uv.exists():
                _run(uv, "venv", "-q", "--python", sys.executable, self._folder)
                _run(uv, "pip", "install", "-q", "--python", self.python, "--require-hashes", "-r", self._lock)
            else:
                _run(sys.executable, "-m", "venv", self._folder)
                _run(self.python, "-m", "pip", "install", "-q", "--require-hashes", "-r", self._lock)
            (self._folder / "stamp").write_text(self._wanted())

    def program(self, name: str) -> Path:
        """Return the real executable `caddy`, `traefik` or `envoy`. Raises Missing where no wheel fits this platform."""
        # Envoy's command is a Python launcher; the program itself lies in its package.
        places = [self._folder / "bin" / name, *self._folder.glob(f"lib/python3*/site-packages/{name}/_bin/{name}")]
        if not places[-1].is_file():
            raise Missing(f"the wheel of {name} brought no program for this platform")
        return places[-1]


def _run(*argv: str | Path) -> None:
    done = subprocess.run(
        [str(part) for part in argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"the peers could not be installed: {done.stderr.strip()[-1500:]}")
