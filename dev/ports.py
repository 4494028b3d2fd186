"""Remembers which loopback port each process used, so that addresses stay the same between runs."""

import json
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Tell whether a loopback listener could take the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


class Ports:
    """Hands out free ports by name and writes them down; a name gets its old port back while that is free."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._by_name = self._read()
        self._taken: set[int] = set()

    def take(self, name: str) -> int:
        """Return a free port for the name; the same as last time when nobody else holds it."""
        port = self._by_name.get(name, 0)
        if port in self._taken or not port or not is_free(port):
            port = self._pick()
        self._taken.add(port)
        if self._by_name.get(name) != port:
            self._by_name[name] = port
            self._write()
        return port

    def release(self, port: int) -> None:
        """Allow the port to be handed out again."""
        self._taken.discard(port)

    def _pick(self) -> int:
        known = set(self._by_name.values()) | self._taken
        for _ in range(200):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.bind((LOOPBACK, 0))
                port = int(probe.getsockname()[1])
            if port not in known:
                return port
        raise OSError("no free loopback port was found in 200 tries")

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}  # a lost or torn memory only costs the old numbers
        if not isinstance(found, dict):
            return {}
        return {str(name): port for name, port in found.items() if isinstance(port, int) and 0 < port < 65536}

    def _write(self) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps(self._by_name, indent=1, sort_keys=True))
        draft.replace(self._file)
