"""wrk, the closed-loop load generator: one thread, keep-alive connections, its figures as JSON by a script of ours."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.bench.errors import BenchError, Missing

REQUEST_TIMEOUT_S = 10

# wrk's own text rounds to three digits; `done` sees the exact numbers (times in µs).
DONE = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests":%d,"duration_us":%d,"bytes":%d,"p50_us":%d,"p99_us":%d,"max_us":%d,' ..
    '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99), latency.max,
    e.connect, e.read, e.write, e.status, e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What every connection sends, again and again. `body` empty: no body and no length."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw of one window."""

    requests: int
    duration_s: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]

    @property
    def per_s(self) -> float:
        return self.requests / self.duration_s


def find_wrk() -> Path:
    """Return the program. Raises Missing."""
    found = shutil.which("wrk")
    if found is None:
        raise Missing("wrk is missing: apt-get install -y wrk")
    return Path(found)


def script(request: Request) -> str:
    """Return the Lua text that makes wrk send the request and print its figures."""
    lines = [f"wrk.method = {_quoted(request.method)}"]
    lines += [f"wrk.headers[{_quoted(name)}] = {_quoted(value)}" for name, value in request.headers]
    if request.body:
        lines.append(f"wrk.body = {_quoted(request.body.decode('ascii'))}")
    return "\n".join(lines) + "\n" + DONE


def _quoted(text: str) -> str:
    # JSON's escapes of printable ASCII are Lua's as well.
    if not (text.isascii() and text.isprintable()):
        raise ValueError("only printable ASCII can be sent")
    return json.dumps(text)


def parse(output: str) -> Load:
    """Read the figures from what wrk printed. Raises BenchError when they are not there."""
    line = next((row for row in reversed(output.splitlines()) if row.startswith("{")), None)
    if line is None:
        raise BenchError(f"wrk printed no figures: {output.strip()[-500:]}")
    found = json.loads(line)
    names = ("connect", "read", "write", "status", "timeout")
    return Load(
        requests=found["requests"],
        duration_s=found["duration_us"] / 1e6,
        p50_ms=found["p50_us"] / 1e3,
        p99_ms=found["p99_us"] / 1e3,
        errors={name: found[name] for name in names if found[name]},
    )


def run(wrk: Path, lua: Path, *, port: int, target: str, connections: int, seconds: int) -> Load:
    """Load a port from the caller's core; wrk knows whole seconds only. Raises BenchError when wrk itself fails."""
    argv = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={REQUEST_TIMEOUT_S}s", "-s", lua]
    done = subprocess.run(
        [*argv, f"http://127.0.0.1:{port}{target}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + REQUEST_TIMEOUT_S + 20,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"wrk ended {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return parse(done.stdout)
