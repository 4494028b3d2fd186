"""Short words for what went wrong on a connection, so that no address or text of a driver is ever shown."""

import socket
import ssl


def kind_of(error: BaseException) -> str:
    """Return `refused`, `timeout`, `unresolved`, `tls`, `closed`, `unreachable` or `error`, by the cause that lies deepest."""
    found = "error"
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            break
        found = _kind_of_one(seen) or found
        seen = seen.__cause__ or seen.__context__
    return found


def _kind_of_one(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, socket.gaierror):
        return "unresolved"
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, ConnectionError | EOFError):
        return "closed"
    if isinstance(error, OSError):
        return "unreachable"
    return ""
