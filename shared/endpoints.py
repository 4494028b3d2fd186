"""Where the fleet's replicas are: a list with DNS names or a file, read again while running."""

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import orjson
import structlog

from shared.errors import CannotStart

FILE_REFRESH_S = 0.1
"""One `stat` each time: a fleet is usable this soon after its last replica is ready."""
DNS_REFRESH_S = 1.0
RESOLVE_TIMEOUT_S = 2.0
REPLICAS_MAX = 256
"""Of one service; a longer answer is cut, since every reader keeps connections to each."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
Address = tuple[str, int]
"""Host (an IP address once resolved) and port."""

log = structlog.get_logger()


class EndpointsError(CannotStart):
    """The setting or the file does not say where the fleet is."""


def parse_address(text: str) -> Address:
    """Read `host:port` (`[v6]:port`). Raises EndpointsError."""
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host or "@" in host:
        raise EndpointsError(f"'{text.strip()[:80]}' is not host:port")
    return host, int(port)


def parse_list(text: str) -> dict[str, list[Address]]:
    """Read `users=host:port,users=host2:port,realtime=...`. Raises EndpointsError."""
    found: dict[str, list[Address]] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, address = item.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()):
            raise EndpointsError(f"'{item[:80]}' is not name=host:port")
        found.setdefault(name.strip(), []).append(parse_address(address))
    return found


def parse_file(content: bytes) -> dict[str, list[Address]]:
    """Read `{"users": ["127.0.0.1:41001"]}`. Raises EndpointsError."""
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise EndpointsError("the endpoints file is not JSON") from error
    if not isinstance(data, dict) or not all(isinstance(v, list) for v in data.values()):
        raise EndpointsError("the endpoints file is not an object of lists")
    return {str(name): [parse_address(str(item)) for item in items] for name, items in data.items()}


class Endpoints:
    """The known addresses of every service's replicas; `watch` keeps them fresh.

    A source that cannot be read or resolved leaves the last known addresses: stale ones are better than none.
    """

    def __init__(self, source: str) -> None:
        """Raises EndpointsError when `source` is neither a list nor a `file://` URL."""
        self._path: Path | None = None
        self._listed: dict[str, list[Address]] = {}
        if source.startswith("file://"):
            self._path = Path(unquote(urlsplit(source).path))
        else:
            self._listed = parse_list(source)
        self._found: dict[str, tuple[Address, ...]] = {}
        self._stamp: tuple[int, int, int] | None = None
        self._failing = ""
        self.on_change: list[Callable[[], None]] = []

    def of(self, service: str) -> tuple[Address, ...]:
        """Return a service's addresses, empty where none is known."""
        return self._found.get(service, ())

    @property
    def services(self) -> Mapping[str, tuple[Address, ...]]:
        return self._found

    async def watch(self) -> None:
        """Refresh for ever; a service runs it as a background task."""
        while True:
            await self.refresh()
            await asyncio.sleep(FILE_REFRESH_S if self._path else DNS_REFRESH_S)

    async def refresh(self) -> None:
        """Read the source once; never raises, a failure is logged when it begins."""
        try:
            found = self._read() if self._path else await self._resolve()
        except (OSError, TimeoutError, EndpointsError) as error:
            reason = f"{type(error).__name__}: {error}"[:300]
            if reason != self._failing:
                log.warning("endpoints_not_refreshed", reason=reason)
            self._failing = reason
            return
        self._failing = ""
        if found is not None and found != self._found:
            self._found = found
            for tell in self.on_change:
                tell()

    def _read(self) -> dict[str, tuple[Address, ...]] | None:
        assert self._path is not None
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp == self._stamp:
            return None
        found = {name: tuple(items[:REPLICAS_MAX]) for name, items in parse_file(self._path.read_bytes()).items()}
        self._stamp = stamp
        return found

    async def _resolve(self) -> dict[str, tuple[Address, ...]]:
        found: dict[str, tuple[Address, ...]] = {}
        for name, addresses in self._listed.items():
            resolved: list[Address] = []
            for host, port in addresses:
                resolved += await self._resolve_one(name, host, port)
            found[name] = tuple(dict.fromkeys(resolved))[:REPLICAS_MAX]
        return found

    async def _resolve_one(self, service: str, host: str, port: int) -> list[Address]:
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return [(host, port)]
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError):
            # One unknown name (a service scaled to nothing) must not hide the others.
            return [address for address in self.of(service) if address[1] == port]
        return sorted({(str(answer[4][0]), port) for answer in answers})
