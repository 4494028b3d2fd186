"""A minimal PostgreSQL client: SCRAM log-in and simple queries, to prove that a server really answers.

Protocol 3.0 as in the PostgreSQL manual, chapter "Frontend/Backend Protocol"; SCRAM-SHA-256 as in RFC 5802
and RFC 7677. Blocking with a socket timeout; meant for a probe and a few administrative statements.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass


class PgError(Exception):
    """The server refused or spoke nonsense; the text is the server's own message."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to log in and as whom."""

    host: str
    port: int
    user: str
    password: str
    database: str


class Connection:
    """One logged-in session."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")

    def query(self, sql: str) -> list[list[str | None]]:
        """Run one simple query and return its rows as text."""
        self._send(b"Q", sql.encode() + b"\0")
        rows: list[list[str | None]] = []
        failure: str | None = None
        while True:
            kind, body = self._receive()
            if kind == b"D":
                rows.append(_row(body))
            elif kind == b"E":
                failure = _message(body)
            elif kind == b"Z":
                break
        if failure is not None:
            raise PgError(failure)
        return rows

    def log_in(self, target: Target) -> None:
        """Send the startup packet and prove the password."""
        pairs = b"".join(f"{key}\0{value}\0".encode() for key, value in _startup(target))
        body = struct.pack("!I", 196608) + pairs + b"\0"
        self._sock.sendall(struct.pack("!I", len(body) + 4) + body)
        scram = _Scram(target.password)
        while True:
            kind, body = self._receive()
            if kind == b"E":
                raise PgError(_message(body))
            if kind == b"Z":
                return
            if kind == b"R":
                self._authenticate(body, scram)

    def close(self) -> None:
        """End the session politely."""
        with contextlib.suppress(OSError):
            self._send(b"X", b"")
        self._file.close()
        self._sock.close()

    def _authenticate(self, body: bytes, scram: "_Scram") -> None:
        code = struct.unpack("!I", body[:4])[0]
        if code == 10:
            first = scram.first()
            self._send(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first)
        elif code == 11:
            self._send(b"p", scram.final(body[4:]))
        elif code == 12:
            scram.check(body[4:])
        elif code != 0:
            raise PgError(f"the server asks for authentication {code}, not SCRAM-SHA-256")

    def _send(self, kind: bytes, body: bytes) -> None:
        self._sock.sendall(kind + struct.pack("!I", len(body) + 4) + body)

    def _receive(self) -> tuple[bytes, bytes]:
        head = self._file.read(5)
        if len(head) < 5:
            raise PgError("the server closed the connection")
        length = struct.unpack("!I", head[1:])[0] - 4
        return head[:1], self._file.read(length)


@contextlib.contextmanager
def connect(target: Target, *, timeout_s: float = 5.0) -> Iterator[Connection]:
    """Open a logged-in session; OSError when nobody listens, PgError when refused."""
    connection = Connection(socket.create_connection((target.host, target.port), timeout=timeout_s))
    try:
        connection.log_in(target)
        yield connection
    finally:
        connection.close()


class _Scram:
    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._nonce = base64.b64encode(os.urandom(18)).decode()
        self._server_signature = b""

    def first(self) -> bytes:
        return f"n,,n=,r={self._nonce}".encode()

    def final(self, challenge: bytes) -> bytes:
        parts = dict(item.split("=", 1) for item in challenge.decode().split(","))
        if not parts["r"].startswith(self._nonce):
            raise PgError("the server's SCRAM nonce does not continue ours")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, base64.b64decode(parts["s"]), int(parts["i"]))
        client_key = _hmac(salted, b"Client Key")
        bare = f"c=biws,r={parts['r']}"
        signed = f"n=,r={self._nonce},{challenge.decode()},{bare}".encode()
        proof = bytes(a ^ b for a, b in zip(client_key, _hmac(_sha(client_key), signed), strict=True))
        self._server_signature = _hmac(_hmac(salted, b"Server Key"), signed)
        return f"{bare},p={base64.b64encode(proof).decode()}".encode()

    def check(self, final: bytes) -> None:
        if base64.b64decode(final.decode().removeprefix("v=")) != self._server_signature:
            raise PgError("the server could not prove that it knows the password")


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()


def _sha(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _startup(target: Target) -> list[tuple[str, str]]:
    return [("user", target.user), ("database", target.database), ("application_name", "roundhouse-dev")]


def _row(body: bytes) -> list[str | None]:
    count = struct.unpack("!H", body[:2])[0]
    at, row = 2, []
    for _ in range(count):
        size = struct.unpack("!i", body[at : at + 4])[0]
        at += 4
        row.append(None if size < 0 else body[at : at + size].decode())
        at += max(size, 0)
    return row


def _message(body: bytes) -> str:
    fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    return fields.get(b"M", "unknown error")
