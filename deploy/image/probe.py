"""The health check of an image: exits 0 when the service in this container answers `GET /ready` with 200.

It runs every few seconds in a new interpreter, so it imports the standard library's socket and nothing else.
"""

import os
import re
import socket
import sys
from collections.abc import Mapping

TIMEOUT_S = 2.0
"""Of each step; less than the health check's own, which would only say that it took too long."""

PORT_VARIABLE = re.compile(r"RH_[A-Z0-9_]+_PORT")
STATUS_LINE_BYTES_MAX = 1024
EVERY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def address_of(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return where the service listens, from its own settings. Raises ValueError with a sentence."""
    names = [name for name in environ if PORT_VARIABLE.fullmatch(name)]
    if len(names) != 1 or not environ[names[0]].isdigit():
        raise ValueError("set RH_<SERVICE>_PORT to the port of this container's service")
    host = environ.get(f"{names[0].removesuffix('PORT')}HOST", "")
    return EVERY_ADDRESS.get(host, host), int(environ[names[0]])


def status_line(address: tuple[str, int]) -> str:
    """Ask and return the first line of the answer. Raises OSError."""
    with socket.create_connection(address, TIMEOUT_S) as connection:
        connection.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while b"\r\n" not in answer and len(answer) < STATUS_LINE_BYTES_MAX:
            more = connection.recv(STATUS_LINE_BYTES_MAX)
            if not more:
                break
            answer += more
    return answer.partition(b"\r\n")[0].decode("ascii", "replace")


def main() -> str | None:
    """Return None where the service is ready, else what is wrong: `docker inspect` shows it."""
    try:
        found = status_line(address_of(os.environ))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None if found.split(" ")[1:2] == ["200"] else f"/ready answered: {found}"


if __name__ == "__main__":
    sys.exit(main())
