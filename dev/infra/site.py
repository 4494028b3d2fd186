"""The folders and memory one fleet works in."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from dev.infra.credentials import make_private_dir
from dev.ports import Ports
from dev.process import RUN_MARK


@dataclass(slots=True)
class Site:
    """Where data, run files, logs and secrets of one fleet live; every folder is 0700."""

    data: Path
    run: Path
    logs: Path
    secrets: Path
    ports: Ports
    mark: str
    # Open descriptors every embedded server inherits: the lock on the data folder.
    keep_fds: tuple[int, ...] = ()
    # Folders outside the four, made because PostgreSQL could not work inside; `down` removes them when ephemeral.
    outside: list[Path] = field(default_factory=list)

    @classmethod
    def make(cls, *, data: Path, run: Path, logs: Path, secrets: Path, mark: str) -> "Site":
        """Create the folders and return the site."""
        for folder in (data, run, logs, secrets):
            make_private_dir(folder)
        return cls(
            data=data.resolve(),
            run=run.resolve(),
            logs=logs.resolve(),
            secrets=secrets.resolve(),
            ports=Ports(run / "ports.json"),
            mark=mark,
        )

    def clean_env(self) -> dict[str, str]:
        """Return the environment every child starts from: nothing of the caller's but the path, locale and temp folder."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "TZ") if key in os.environ}
        return {**kept, "LANG": "C.UTF-8", RUN_MARK: self.mark}
