"""Proves that an embedded server really works: log-in and a round trip in its own protocol, with a deadline."""

import asyncio
import json

from dev.infra import pgwire

PROBE_TIMEOUT_S = 2.0


class NotReady(Exception):
    """The server does not answer as it should yet; the text says what was seen."""


async def probe_nats(port: int, user: str, password: str) -> None:
    """Read INFO, log in, and wait for the PONG of our PING."""
    async with asyncio.timeout(PROBE_TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            info = await reader.readline()
            if not info.startswith(b"INFO "):
                raise NotReady("no INFO line")
            if not json.loads(info[5:]).get("jetstream"):
                raise NotReady("JetStream is not up yet")
            options = {"user": user, "pass": password, "verbose": False, "pedantic": False, "name": "roundhouse-dev"}
            writer.write(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
            answer = await reader.readline()
            if not answer.startswith(b"PONG"):
                raise NotReady(answer.decode(errors="replace").strip() or "connection closed")
        finally:
            writer.close()


async def probe_valkey(port: int, password: str) -> None:
    """Log in with AUTH and wait for the answer to PING."""
    async with asyncio.timeout(PROBE_TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(_resp("AUTH", password) + _resp("PING"))
            for expected in (b"+OK", b"+PONG"):
                answer = await reader.readline()
                if not answer.startswith(expected):
                    raise NotReady(answer.decode(errors="replace").strip() or "connection closed")
        finally:
            writer.close()


async def probe_postgres(target: pgwire.Target) -> None:
    """Log in with SCRAM and run a query."""
    try:
        # The thread ends by itself: every socket call in it has this timeout.
        await asyncio.to_thread(_select_one, target)
    except pgwire.PgError as error:
        raise NotReady(str(error)) from error


def ensure_database(target: pgwire.Target, name: str) -> None:
    """Create the database unless it is there."""
    with pgwire.connect(target) as connection:
        if not connection.query(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):  # noqa: S608
            connection.query(f'CREATE DATABASE "{name}"')


def _select_one(target: pgwire.Target) -> None:
    with pgwire.connect(target, timeout_s=PROBE_TIMEOUT_S) as connection:
        if connection.query("SELECT 1") != [["1"]]:
            raise pgwire.PgError("SELECT 1 did not answer 1")


def _resp(*words: str) -> bytes:
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(w.encode())}\r\n{w}\r\n".encode() for w in words)
