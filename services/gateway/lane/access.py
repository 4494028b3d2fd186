"""The access log: one line a request, written as bytes and in batches.

A line through structlog's processors costs 20 to 30 µs, a large part of all that a request costs; here it is a dict and one pass of
orjson. Lines wait at most a tick of the sweeper; on a terminal, and for levels that leave INFO out, structlog decides.
"""

import orjson
import structlog

from services.gateway.lane.call import Call
from shared.log import JsonLines, json_lines, mask, time_text

BUFFERED_BYTES_MAX = 64 * 1024
PATH_CHARS_MAX = 512
NO_ANSWER = 499
"""The client went away before there was an answer (the convention nginx began)."""


class AccessLog:
    """Writes what a finished call was."""

    def __init__(self) -> None:
        self._log = structlog.get_logger()
        self._lines: list[bytes] = []
        self._bytes = 0
        self._sink: JsonLines | None = json_lines()

    def write(self, call: Call, route: str) -> None:
        """Note one call."""
        path = call.path
        may_tell = len(path) > PATH_CHARS_MAX or "eyJ" in path or "@" in path or "%40" in path
        fields = {
            "event": "request",
            "method": call.method,
            "path": mask(path[:PATH_CHARS_MAX]) if may_tell else path,
            "route": route,
            "status": call.status or NO_ANSWER,
            "duration_ms": int((call.ended_at - call.started_at) * 100_000) / 100,
            "body_bytes": call.body_bytes,
            "client": call.client.address,
            "request_id": call.request_id,
            "trace_id": call.traceparent[3:35],
        }
        if call.subject:
            fields["user_id"] = call.subject
        sink = self._sink
        if sink is None:
            self._log.info(**fields)
            return
        fields["level"] = "info"
        fields["time"] = time_text()
        line = orjson.dumps(fields)
        self._lines.append(line[:-1] + sink.tail)
        self._bytes += len(line)
        if self._bytes > BUFFERED_BYTES_MAX:
            self.flush()

    def on_tick(self, _: float) -> None:
        """See Sweeper."""
        self.flush()

    def flush(self) -> None:
        """Write what waits; also the last thing before the process ends."""
        if self._lines and self._sink is not None:
            self._sink.write(b"".join(self._lines))
            self._lines.clear()
            self._bytes = 0
