"""A gibibyte each way through our gateway, with the taking side slow at first: what does not fit must wait, not pile up."""

import hashlib
import json
import socket
import time
from collections.abc import Callable

from tests.bench import accounting, payload
from tests.bench.errors import BenchError
from tests.bench.gateways import Stage
from tests.bench.ours import Caller, Shape, variant
from tests.bench.parts import Part
from tests.bench.results import rounded
from tests.bench.sampling import PeakMemory
from tests.bench.service import DOWN, PIECE_S, SLOW_PIECE_BYTES, UP
from tests.bench.windows import WARM_UP_S, Driver

TOTAL_BYTES = 1024**3
SLOW_S = 3.0
TIMEOUT_S = 60.0

METHOD = (
    f"{TOTAL_BYTES // 2**20} MiB down and up through our gateway with everything on; the taking side reads a megabyte a second for "
    f"{SLOW_S:.0f} s, then as fast as it can. Growth: the highest RSS meanwhile over that after a warm-up; SHA-256 compared."
)


def estimate_s() -> float:
    return 2 * (SLOW_S + 8) + WARM_UP_S + 3


def run(driver: Driver, service_port: int, *, tell: Callable[[str], None], total: int = TOTAL_BYTES) -> Part:
    """Move the bytes both ways. Raises BenchError when what arrives is not what was sent."""
    stage = driver.stage
    subject = variant("ours-transfer", "", Shape())
    expected = payload.digest(total)
    raw: dict[str, object] = {"method": METHOD, "bytes": total}
    ratios = {}
    behind = Stage(stage.stand, stage.wheels, service_port, stage.redis_url)
    with Driver(behind, driver.caller, stage.stand.folder).serving(subject) as (started, port):
        driver.load(port, "get", seconds=WARM_UP_S)
        for name, move in (("down", down), ("up", up)):
            before = accounting.memory(accounting.tree(started.running.pid)).rss_bytes
            began = time.monotonic()
            with PeakMemory(started.running.pid) as peak:
                arrived = move(port, driver.caller, total)
            seconds = time.monotonic() - began
            if arrived != expected:
                raise BenchError(f"{total} bytes {name}: what arrived is not what was sent")
            growth_mib = max(0, peak.rss_bytes - before) / 2**20
            raw[name] = {"seconds": rounded(seconds), "growth_mib": rounded(growth_mib), "samples": peak.samples}
            ratios[f"rss_growth_mib_1gib_{name}"] = growth_mib
            tell(f"transfer {name:<4} {total / 2**20:,.0f} MiB in {seconds:.1f} s, RSS grew {growth_mib:.1f} MiB")
    return Part(raw, ratios)


def _connect(port: int) -> socket.socket:
    found = socket.socket()
    # A small window, so that it is the gateway that has to wait, not the kernel that keeps megabytes for us.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_PIECE_BYTES)
    found.settimeout(TIMEOUT_S)
    found.connect(("127.0.0.1", port))
    return found


def down(port: int, caller: Caller, total: int) -> str:
    """Fetch the bytes, slowly at first; returns the SHA-256 of what came."""
    with _connect(port) as link:
        link.sendall(_head("GET", f"{DOWN}?bytes={total}", port, caller))
        reader = link.makefile("rb", buffering=0)
        left = _length(_read_head(link))
        found = hashlib.sha256()
        slow_until = time.monotonic() + SLOW_S
        while left:
            piece = reader.read(min(left, SLOW_PIECE_BYTES))
            if not piece:
                raise BenchError(f"the answer broke off {left} bytes before its end")
            found.update(piece)
            left -= len(piece)
            if time.monotonic() < slow_until:
                time.sleep(PIECE_S)
    return found.hexdigest()


def up(port: int, caller: Caller, total: int) -> str:
    """Send the bytes to a service that is slow at first; returns the SHA-256 that it saw."""
    with _connect(port) as link:
        link.sendall(_head("POST", f"{UP}?slow_s={SLOW_S}", port, caller, length=total))
        for block in payload.blocks(total):
            link.sendall(block)
        left = _length(_read_head(link))
        body = b""
        while len(body) < left and (piece := link.recv(left - len(body))):
            body += piece
    return str(json.loads(body)["sha256"])


def _head(method: str, target: str, port: int, caller: Caller, *, length: int | None = None) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Authorization: {caller.authorization}"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def _read_head(link: socket.socket) -> bytes:
    """Read byte by byte: what follows the head must stay in the socket."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = link.recv(1)
        if not piece or len(head) > 16384:
            raise BenchError(f"no answer but {head[:200]!r}")
        head += piece
    return head


def _length(head: bytes) -> int:
    lines = head.decode("latin-1").lower().split("\r\n")
    if not lines[0].startswith("http/1.1 200"):
        raise BenchError(f"answered {lines[0]}")
    found = [line.partition(":")[2] for line in lines if line.startswith("content-length:")]
    if len(found) != 1:
        raise BenchError("an answer without its length")
    return int(found[0])
