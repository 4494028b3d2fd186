"""Logs: structlog as JSON lines (colour on a terminal), with the request's ids on every line and secrets masked.

`log = structlog.get_logger()`; an event is a snake_case name plus fields. The libraries' own logging comes out in the same form.
"""

import functools
import logging
import re
import sys
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from select import PIPE_BUF
from typing import Any

import orjson
import structlog
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer

from shared import context

TEXT_CHARS_MAX = 8192
"""A longer text is cut: one line must not fill a disk or a log pipeline's buffer."""

_SECRET_KEYS = re.compile(r"password|passwd|secret|token|authorization|cookie|api_?key|seal", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(?P<bearer>\bBearer\s+)[^\s\"',;]+"
    r"|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    r"|(?P<scheme>\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s@/]+@"
    r"|(?P<query>[?&](?:token|ticket|access_token)=)[^&\s\"']+"
    # Bounded, so that a long text without an @ costs no more than its length.
    r"|(?P<email>(?<![\w.+%-])[\w.+%-]{1,64}(?:@|%40)[\w-]{1,63}(?:\.[\w-]{1,63}){1,8})",
)
MASK = "***"


def mask(text: str) -> str:
    """Return a text with bearer tokens, JWTs, URL passwords and token values replaced by `***`, e-mail addresses by `mask_email`."""
    if (
        "eyJ" not in text
        and "=" not in text
        and "://" not in text
        and "Bearer" not in text
        and "@" not in text
        and "%40" not in text
    ):
        # One of these is in all that could be masked, and asking so costs a tenth of the pattern.
        return text
    return _SECRET_TEXT.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    if match["bearer"]:
        return f"{match['bearer']}{MASK}"
    if match["scheme"]:
        return f"{match['scheme']}:{MASK}@"
    if match["query"]:
        return f"{match['query']}{MASK}"
    if match["email"]:
        return mask_email(match["email"].replace("%40", "@"))
    return MASK


def mask_email(email: str) -> str:
    """Return an address that can be told from others but not written to: `a***@e***.com`."""
    local, _, domain = email.rpartition("@")
    name, dot, top = domain.rpartition(".")
    return f"{local[:1]}***@{name[:1]}***{dot}{top}"


@functools.lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    return _SECRET_KEYS.search(key) is not None


def _mask_value(key: str, value: Any) -> Any:
    if isinstance(value, str | bytes) and _is_secret(key):
        return MASK
    if isinstance(value, str):
        cut = value if len(value) <= TEXT_CHARS_MAX else value[:TEXT_CHARS_MAX] + "...(cut)"
        return mask(cut)
    if isinstance(value, dict):
        return {str(k): _mask_value(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_mask_value(key, v) for v in value]
    return value


Event = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Where lines go as JSON, for what writes so many that structlog's processors would cost more than the work they tell of.

    A line is an object without its closing brace, followed by `tail`; `write` takes whole lines.
    """

    tail: bytes
    write: Callable[[bytes], None]


_json_lines: JsonLines | None = None
_second, _second_text = 0, ""


def time_text() -> str:
    """Return the time now as lines show it, RFC 3339 in UTC to the microsecond."""
    global _second, _second_text
    now = time.time()
    second = int(now)
    if second != _second:
        # The part that many lines share.
        _second, _second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{_second_text}.{int((now - second) * 1e6):06d}Z"


def json_lines() -> JsonLines | None:
    """Return the sink of lines on INFO; None where they are not JSON, or are left out."""
    return _json_lines


def add_request(_: Any, __: str, event: Event) -> Event:
    """Put the ids of the request being served on the line."""
    found = context.current()
    if found is not None:
        event.setdefault("request_id", found.request_id)
        if found.traceparent:
            event.setdefault("trace_id", found.traceparent.split("-")[1])
        if found.subject:
            event.setdefault("user_id", found.subject)
    return event


def mask_secrets(_: Any, __: str, event: Event) -> Event:
    """Replace what must never be written, by key and by form."""
    return {key: _mask_value(key, value) for key, value in event.items()}


class _Library(logging.Handler):
    """Turns the records of libraries (uvicorn, asyncpg, nats) into lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "uvicorn.error" and record.getMessage().startswith("Traceback"):
            # A failed start, told a second time: shared.app has said it in a line that is ours.
            return
        try:
            fields: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
            structlog.get_logger().log(
                record.levelno, "library_message", logger=record.name, message=record.getMessage(), **fields
            )
        except Exception:  # noqa: BLE001 - logging must not break what it reports; the standard handler prints the fault
            self.handleError(record)


def set_up(*, service: str, replica: str, level: str) -> None:
    """Configure logging for the process; call once, first."""
    global _json_lines
    _json_lines = None
    on_terminal = sys.stdout.isatty()
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        add_request,
    ]
    if on_terminal:
        last: list[Any] = [
            mask_secrets,
            structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback),
        ]
        factory: Any = structlog.PrintLoggerFactory(sys.stdout)
    else:

        def add_service(_: Any, __: str, event: Event) -> Event:
            event["service"] = service
            event["replica"] = replica
            return event

        last = [
            add_service,
            # Never the frames' variables, as is the default: they hold passwords and addresses.
            ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            mask_secrets,
            structlog.processors.JSONRenderer(serializer=_dump),
        ]
        factory = structlog.BytesLoggerFactory(sys.stdout.buffer)
        if level in ("DEBUG", "INFO"):
            fixed = orjson.dumps({"service": service, "replica": replica})
            _json_lines = JsonLines(tail=b"," + fixed[1:] + b"\n", write=_write_out)
    structlog.configure(
        processors=before + last,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_Library()]
    root.setLevel(max(getattr(logging, level), logging.INFO))
    # Each of these tells every request or every retry on INFO; what matters of it is in our own lines.
    for noisy in ("uvicorn.access", "uvicorn.error", "httpx2", "httpcore2", "asyncio", "asyncpg", "nats"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _write_out(lines: bytes) -> None:
    # In pieces of whole lines that a pipe takes at once: a longer write to a full pipe is torn by that of another worker.
    start = 0
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + PIPE_BUF) + 1 or lines.find(b"\n", start) + 1 or len(lines)
        sys.stdout.buffer.write(lines[start:end])
        sys.stdout.buffer.flush()
        start = end


def _dump(event: Event, **_: Any) -> bytes:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS)
