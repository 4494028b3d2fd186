"""Puts a fleet into the background: a child process of its own session that tells once how the start went."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev.errors import CannotRun
from dev.tail import last_lines
from dev.up import Outcome


def detach(log: Path, work: Callable[[Outcome], int]) -> tuple[str | None, dict[str, Any]]:
    """Run `work` in a detached child; return its outcome: (reason or None when ready, status object).

    The child keeps none of the caller's descriptors: a script that captures our output must see its end.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _become_daemon(log, writing, work)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        outcome = pipe.read()
    if not outcome:
        lines = " / ".join(last_lines(log, 3))
        raise CannotRun(f"The fleet ended before it was ready: {lines or f'see {log}'}")
    reason, status = json.loads(outcome)
    if reason is not None and status is None:
        raise CannotRun(reason)
    return reason, status


def _become_daemon(log: Path, writing: int, work: Callable[[Outcome], int]) -> None:
    code = 1
    try:
        os.setsid()
        _redirect(log)
        kept = os.dup2(writing, 3, inheritable=False)
        os.closerange(4, 65536 if sys.platform != "linux" else 1 << 20)
        outcome = os.fdopen(kept, "wb")

        def tell(reason: str | None, status: dict[str, Any] | None) -> None:
            if not outcome.closed:
                outcome.write(json.dumps([reason, status]).encode())
                outcome.close()

        try:
            code = work(tell)
        except CannotRun as error:
            tell(str(error), None)
    except BaseException:  # noqa: BLE001 - the edge of the daemon: whatever ended it goes to its log
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(nothing, 0)
    os.dup2(target, 1)
    os.dup2(target, 2)
