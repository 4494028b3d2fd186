"""Forks service processes from one that has already imported the third-party packages, so that starting is quick.

Runs as `python -m dev.forkserver FD`. It imports no code of ours that a service uses (neither `services` nor `shared`),
so that a restarted service always runs what is on disk, and stays single-threaded, so that forking is safe.
One JSON line a request on the socket, with the child's descriptors (log, then inherited sockets) attached:
`{"name", "module", "env", "fd_variable"}` -> `{"pid"}`; ends of children are reported as `{"exited", "code"}`.
"""

import array
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys

PRELOAD = (
    "fastapi",
    "fastapi.openapi.utils",
    "uvicorn",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.lifespan.on",
    "pydantic_settings",
    "structlog",
    "orjson",
    "prometheus_client",
    "nats",
    "nats.js",
    "redis.asyncio",
    "jwt",
    "httpx2",
    "asyncpg",
    "argon2",
    "uuid_utils",
    "starlette.middleware.cors",
    "starlette.middleware.gzip",
    "websockets",
    "uvloop",
    "httptools",
    "hiredis",
    "cryptography.hazmat.primitives",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.ciphers.aead",
    "concurrent.futures.process",
    "multiprocessing.connection",
    "logging.config",
    "email.message",
    "uvicorn.logging",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "python_multipart",
    "opentelemetry.trace",
    "opentelemetry.propagate",
)
REQUEST_BYTES_MAX = 256 * 1024
DESCRIPTORS_MAX = 8
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


def main(descriptor: int) -> None:
    """Serve requests on the inherited socket until its other end closes."""
    tie_to_parent(int(os.environ.pop("ROUNDHOUSE_PARENT")))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=descriptor)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    preload()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    threads = threads_now()
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, every shared page in the children
    answer(channel, {"ready": True, "threads": threads})
    serve(channel, wake_read)


def serve(channel: socket.socket, wake: int) -> None:
    """Fork on request, report ends; leaves (and so ends the children) when the runner closes the channel."""
    while True:
        readable, _, _ = select.select([channel.fileno(), wake], [], [])
        if wake in readable:
            os.read(wake, 4096)
            report_ends(channel)
        if channel.fileno() in readable:
            received = receive(channel)
            if received is None:
                return
            request, descriptors = received
            server_pid = os.getpid()
            pid = os.fork()
            if pid == 0:
                become(request, descriptors, channel, server_pid)
            for descriptor in descriptors:
                os.close(descriptor)
            answer(channel, {"pid": pid})


def preload() -> list[str]:
    """Import the third-party modules that are installed; return the names that are not."""
    missing = []
    for name in PRELOAD:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)  # a service that needs it will say so itself
    return missing


def report_ends(channel: socket.socket) -> None:
    """Collect ended children and tell the runner."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        answer(channel, {"exited": pid, "code": os.waitstatus_to_exitcode(status)})


def become(request: dict[str, object], descriptors: list[int], channel: socket.socket, server_pid: int) -> None:
    """Turn the forked copy into the service process; never returns."""
    code = 1
    try:
        tie_to_parent(server_pid)
        prepare(request, descriptors, channel)
        sys.argv = [str(request["module"])]
        gc.unfreeze()
        importlib.invalidate_caches()  # a file that is newer than our listing of its folder is found too
        runpy.run_module(str(request["module"]), run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leave:
        code = exit_code(leave)
    except BaseException:  # noqa: BLE001 - the edge of the process: whatever ended it goes to its log
        sys.excepthook(*sys.exc_info())
    finally:
        leave_process(code)


def prepare(request: dict[str, object], descriptors: list[int], channel: socket.socket) -> None:
    """Give the copy its own session, signals, streams and environment."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    channel.detach()
    log, *inherited = descriptors
    os.dup2(log, 1)
    os.dup2(log, 2)
    keep = {0, 1, 2, *inherited}
    for name in os.listdir("/proc/self/fd" if os.path.exists("/proc/self/fd") else "/dev/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own descriptor
    name_process(str(request.get("name", "")))
    environment = {str(key): str(value) for key, value in dict(request["env"]).items()}  # type: ignore[call-overload]
    if inherited and request.get("fd_variable"):
        environment[str(request["fd_variable"])] = str(inherited[0])
        os.set_inheritable(inherited[0], True)
    os.environ.clear()
    os.environ.update(environment)


def exit_code(leave: SystemExit) -> int:
    """Translate like the interpreter: None is 0, a number itself, a text is printed and 1."""
    if leave.code is None:
        return 0
    if isinstance(leave.code, int):
        return leave.code
    print(leave.code, file=sys.stderr)
    return 1


def leave_process(code: int) -> None:
    """End like an interpreter would: exit functions and threads first, streams flushed."""
    try:
        import atexit
        import threading

        threading._shutdown()  # type: ignore[attr-defined]  # joins non-daemon threads, as at a normal end
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def tie_to_parent(parent_pid: int) -> None:
    """Die with the parent (Linux); leave at once if it is gone already."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def name_process(name: str) -> None:
    """Show the replica's name in process lists, where every copy would else look like the fork server (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def threads_now() -> int:
    """Count this process's threads as the system sees them; more than one would make forking unsafe."""
    try:
        return len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        return 1


def answer(channel: socket.socket, message: dict[str, object]) -> None:
    """Send one JSON line; a closed channel shows at the next read."""
    try:
        channel.sendall(json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        return


def receive(channel: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """Read one request line and the descriptors sent with it; None when the runner is gone."""
    data, descriptors = b"", array.array("i")
    while not data.endswith(b"\n"):
        part, ancillary, _, _ = channel.recvmsg(65536, socket.CMSG_SPACE(DESCRIPTORS_MAX * descriptors.itemsize))
        if not part or len(data) > REQUEST_BYTES_MAX:
            return None
        data += part
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return json.loads(data), list(descriptors)


if __name__ == "__main__":
    main(int(sys.argv[1]))
