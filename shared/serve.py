"""Serving: one process under uvicorn, with a drain on SIGTERM that loses no request."""

import asyncio
import contextlib
import gc
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import FrameType
from typing import NoReturn, TypeVar

import structlog
import uvicorn

from shared import log
from shared.app import Application
from shared.errors import CannotStart
from shared.settings import Settings, SettingsError, load

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: starting again changes nothing until the settings do."""

WEBSOCKET_MESSAGE_BYTES_MAX = 64 * 1024
LISTEN_BACKLOG = 2048
SETTLE_S = 0.1
"""A request is at most this long behind its connection; closed before, its sender would see a reset."""
COLLECT_AFTER = 10_000
"""Objects made and not freed before the collector looks at the young ones; Python's own 700 is a handful of requests."""

S = TypeVar("S", bound=Settings)


class Server(uvicorn.Server):
    """uvicorn with a drain: readiness turns false first, serving goes on for `drain_wait_s`, then what is in flight finishes."""

    def __init__(self, config: uvicorn.Config, app: Application) -> None:
        super().__init__(config)
        self._application = app
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain at the first signal, stop at once at the second."""
        self._signals += 1
        if self._signals > 1:
            self.force_exit = True
            self.should_exit = True
            return
        asyncio.get_running_loop().call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._application.runtime.readiness.draining.set()
        wait_s = self._application.settings.drain_wait_s
        structlog.get_logger().info("draining", wait_s=wait_s)
        asyncio.get_running_loop().call_later(wait_s, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connection, then give those just taken the time to be read before the idle ones are closed."""
        for server in self.servers:
            server.close()
        if not self.force_exit:
            await asyncio.sleep(SETTLE_S)
        await super().shutdown(sockets)


def config_of(app: Application) -> uvicorn.Config:
    """Return how every service is served; each choice that differs from uvicorn's default is one that was met as a trap."""
    settings = app.settings
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        # Forwarding headers are the gateway's to judge; uvicorn would believe any neighbour on the host.
        proxy_headers=False,
        http=app.http_protocol,
        # Only services that speak WebSocket have the package; the others must start without it.
        ws="websockets-sansio" if find_spec("websockets") else "none",
        ws_max_size=WEBSOCKET_MESSAGE_BYTES_MAX,
        # Off: compression costs 1.8 times the CPU a message and 34 KiB a connection.
        ws_per_message_deflate=False,
        limit_concurrency=settings.connections_max,
        # Longer than the gateway keeps an idle connection, so that the gateway, not this side, ends it.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, int(settings.drain_grace_s)),
        lifespan="on",
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError, as when the port is taken."""
    return _listen(_bind(host, port))


def listen_together(host: str, port: int, count: int) -> list[socket.socket]:
    """Return `count` sockets that listen on one port; the system spreads new connections over them (Linux).

    Raises OSError, as when somebody else has the port.
    """
    if port:
        # Ours alone first: with SO_REUSEPORT a second group of the same user would quietly be given half of our clients.
        _bind(host, port).close()
    found = [_bind(host, port, is_shared=True)]
    port = found[0].getsockname()[1]
    found += [_bind(host, port, is_shared=True) for _ in range(count - 1)]
    return [_listen(each) for each in found]


def _bind(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: asyncio switches Nagle's delay (40 ms a small answer) off only where it sees TCP.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((host, port))
    except OSError:
        found.close()
        raise
    found.set_inheritable(False)
    return found


def _listen(bound: socket.socket) -> socket.socket:
    try:
        bound.listen(LISTEN_BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _calm_the_collector() -> None:
    """Take what exists now out of the collector's sight and let it run less often.

    A full collection walks every object of the imported frameworks to find none to free; under load that was a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 100)


def main(
    settings_type: type[S],
    create: Callable[[S], Application],
    sockets: Callable[[S], Sequence[socket.socket]] = lambda _: (),
) -> NoReturn:
    """Run a service until it is told to stop; the whole of every `__main__`.

    `sockets(settings)` may add listening sockets to the service's own. Exit codes: 0 drained, 78 refused to start until
    something is changed, 1 could not start.
    """
    settings = read(settings_type)
    run(settings, create, [*open_sockets(settings), *sockets(settings)])


def read(settings_type: type[S]) -> S:
    """Return the settings, with logging set up; where they do not fit, say so in a sentence and exit 78."""
    name = settings_type.service
    try:
        settings = load(settings_type)
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 - logging is set up by the settings that failed
        sys.exit(EXIT_CONFIG)
    log.set_up(service=name, replica=settings.replica_name, level=settings.log_level)
    return settings


def open_sockets(settings: Settings, *, count: int = 1) -> list[socket.socket]:
    """Return `count` sockets that listen on the service's own port; where that fails, say why and exit 1."""
    try:
        if count == 1:
            return [listen(settings.host, settings.port)]
        return listen_together(settings.host, settings.port, count)
    except OSError as error:
        structlog.get_logger().error(
            "start_failed", reason=f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        )
        sys.exit(1)


def allow_open_files(connections: int) -> None:
    """Raise this process's limit on open files to what so many connections need, as far as the system lets it.

    The usual 1,024 is there for programs that use select(); a proxy would be full at 500 clients.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each client's connection may have one to a service behind it.
    wanted = 2 * connections + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            structlog.get_logger().warning("open_files_limited", limit=soft, wanted=wanted, reason=str(error))


def run(settings: S, create: Callable[[S], Application], sockets: Sequence[socket.socket]) -> NoReturn:
    """Serve on listening sockets until told to stop, then exit as `main` says; the sockets are closed."""
    try:
        app = create(settings)
    except CannotStart as error:
        structlog.get_logger().error("start_failed", reason=str(error))
        sys.exit(EXIT_CONFIG)
    _calm_the_collector()
    allow_open_files(settings.connections_max)
    server = Server(config_of(app), app)
    with contextlib.ExitStack() as stack:
        for each in sockets:
            stack.enter_context(contextlib.closing(each))
        # uvicorn leaves a failed start by SystemExit with a code of its own.
        stack.enter_context(contextlib.suppress(SystemExit))
        server.run(sockets=list(sockets))
    if app.runtime.start_is_refused:
        sys.exit(EXIT_CONFIG)
    sys.exit(0 if server.started else 1)
