"""Keeps `endpoints.json`: where every ready replica of every service listens, for the processes themselves."""

import json
from collections.abc import Iterable
from pathlib import Path

from dev.infra.credentials import write_private
from dev.unit import Unit


class Endpoints:
    """Writes `{"users": ["127.0.0.1:41001"], ...}` by rename whenever the ready replicas change."""

    def __init__(self, file: Path, services: Iterable[str]) -> None:
        self.file = file
        self._services = tuple(services)
        self._written: dict[str, list[str]] | None = None

    def update(self, units: Iterable[Unit]) -> None:
        """Bring the file to what is ready now; every service has an entry, an empty one when none is."""
        found: dict[str, list[str]] = {name: [] for name in self._services}
        for unit in units:
            if unit.post.kind == "service" and unit.is_listed and unit.current is not None:
                found[unit.post.service].append(f"127.0.0.1:{unit.current.recipe.port}")
        if found != self._written:
            write_private(self.file, json.dumps(found))
            self._written = found
