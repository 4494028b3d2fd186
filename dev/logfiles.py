"""Keeps the processes' log files bounded while they are being written."""

import os
import shutil
from pathlib import Path

LOG_BYTES_MAX = 10 * 1024 * 1024
TRIM_EVERY_S = 5.0


def trim(log: Path, *, bytes_max: int = LOG_BYTES_MAX) -> bool:
    """Move a log that is too long aside (one older file is kept) and empty it in place; True when it did.

    The processes hold the file open in append mode, so it cannot be renamed away from them; lines written
    between the copy and the cut, a few microseconds, are lost.
    """
    try:
        if log.stat().st_size <= bytes_max:
            return False
    except FileNotFoundError:
        return False
    older = log.with_suffix(".log.1")
    shutil.copyfile(log, older)
    older.chmod(0o600)
    os.truncate(log, 0)
    return True


def trim_all(folder: Path) -> None:
    """Trim every log in the folder."""
    for log in folder.glob("*.log"):
        trim(log)
