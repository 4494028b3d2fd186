"""Looks ahead for what would keep a fleet from starting: taken port, full disk, unusable folder."""

import errno
import os
import shutil
import socket
from pathlib import Path

from dev.errors import CannotRun
from dev.supervisor import open_public

DISK_FREE_BYTES_MIN = 300 * 1024 * 1024


def claim_port(port: int) -> socket.socket:
    """Listen on the public port; CannotRun names who has it and how to go on."""
    try:
        return open_public(port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            holder = port_holder(port)
            by = f" by {holder}" if holder else ""
            raise CannotRun(f"Port {port} is taken{by}: stop that, or use another one with --port.") from error
        if error.errno == errno.EACCES:
            raise CannotRun(f"Port {port} needs more rights: use one from 1024 up with --port.") from error
        raise CannotRun(f"Cannot listen on port {port} ({error.strerror}): use another one with --port.") from error


def check_disk(folder: Path) -> None:
    """Raise CannotRun when the disk under the folder is nearly full."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < DISK_FREE_BYTES_MIN:
        raise CannotRun(
            f"Only {free // 2**20} MiB are free under {existing} and {DISK_FREE_BYTES_MIN // 2**20} MiB are needed: "
            "free some space, or choose another disk with --data-dir."
        )


def check_folder(folder: Path) -> None:
    """Create the folder and prove that it can be written and read; CannotRun otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.listdir(folder)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CannotRun(
            f"The folder {folder} cannot be used ({error.strerror}): give this user the right to read and write it, "
            "or choose another one with --data-dir."
        ) from error


def port_holder(port: int) -> str | None:
    """Name the process that listens on a loopback or any-address port (Linux, as far as we may look)."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            for descriptor in (entry / "fd").iterdir():
                if os.readlink(descriptor) in inodes:
                    return f"process {entry.name} ({(entry / 'comm').read_text().strip()})"
        except OSError:
            continue  # gone, or not ours to look at
    return None


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{columns[9]}]")
    return found
