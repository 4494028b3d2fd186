"""Logs: one JSON line an event, with the request's ids, bounded and without secrets."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from shared import context, log
from shared.middleware import RequestLog


@pytest.fixture(autouse=True)
def restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Set again by every set_up; what was there comes back at the end.
    monkeypatch.setattr(log, "_json_lines", None)
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)


def lines(capfdbinary: pytest.CaptureFixture[bytes]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]


def test_a_line_has_service_replica_level_time_and_request_ids(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log.set_up(service="users", replica="users-1", level="INFO")
    token = context.enter(context.RequestContext("req-1", traceparent=f"00-{'a' * 32}-{'b' * 16}-01", subject="u1"))
    structlog.get_logger().info("user_created", count=2)
    context.leave(token)

    (line,) = lines(capfdbinary)

    assert line["event"] == "user_created"
    assert (line["service"], line["replica"], line["level"], line["count"]) == ("users", "users-1", "info", 2)
    assert (line["request_id"], line["trace_id"], line["user_id"]) == ("req-1", "a" * 32, "u1")
    assert "time" in line


def test_lines_under_the_level_are_not_written(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log.set_up(service="users", replica="users-1", level="WARNING")
    structlog.get_logger().info("quiet")
    assert lines(capfdbinary) == []


def test_secrets_are_masked_by_key_and_by_form(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log.set_up(service="users", replica="users-1", level="INFO")
    structlog.get_logger().info(
        "seen",
        password="hunter2",
        nested={"refresh_token": "hunter2"},
        text="Authorization: Bearer hunter2abc and nats://user:hunter2@host:4222",
        path="/ws/chat?token=hunter2&x=1",
    )
    out = capfdbinary.readouterr().out
    assert b"hunter2" not in out
    assert b"nats://user:***@host:4222" in out


def test_an_exception_is_one_line_and_masked(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log.set_up(service="users", replica="users-1", level="INFO")
    try:
        raise RuntimeError("cannot reach postgresql://app:hunter2@db/x")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    out = capfdbinary.readouterr().out
    assert out.count(b"\n") == 1
    assert b"hunter2" not in out
    assert b"RuntimeError" in out


@pytest.mark.parametrize("on_terminal", [False, True])
def test_an_exception_shows_no_variables(
    on_terminal: bool, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal, raising=False)
    log.set_up(service="users", replica="users-1", level="INFO")

    def connect(dsn: str, words: dict[str, str]) -> None:
        raise RuntimeError(f"no connection with {len(dsn) + len(words)} arguments")

    try:
        connect("".join(["hunter", "2"]), {"plain": "".join(["hunter", "2"])})
    except RuntimeError:
        structlog.get_logger().exception("failed")

    out = capfdbinary.readouterr().out
    assert b"no connection with 8 arguments" in out
    assert b"hunter2" not in out


def test_library_messages_come_out_as_lines_of_ours(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log.set_up(service="users", replica="users-1", level="INFO")
    logging.getLogger("somelib").warning("lost %s", "it")
    (line,) = lines(capfdbinary)
    assert (line["event"], line["logger"], line["message"], line["level"]) == (
        "library_message",
        "somelib",
        "lost it",
        "warning",
    )


def test_a_long_text_is_cut(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log.set_up(service="users", replica="users-1", level="INFO")
    structlog.get_logger().info("big", text="x" * 1_000_000)
    assert len(capfdbinary.readouterr().out) < 2 * log.TEXT_CHARS_MAX


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters=" \"',;"), min_size=1))
def test_no_bearer_token_survives_masking(token: str) -> None:
    marked = f"zq{token.strip() or 'x'}qz"
    assert marked not in log.mask(f"Bearer {marked}")


WRITER = """
import sys
from shared import log
log.set_up(service="gateway", replica="gateway-" + sys.argv[1], level="INFO")
sink = log.json_lines()
line = b'{"event":"request","path":"' + sys.argv[1].encode() * 300 + b'"' + sink.tail
for _ in range(20):
    sink.write(line * 150)
"""


@pytest.mark.slow
def test_lines_of_processes_that_share_a_pipe_stay_whole() -> None:
    out, into = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name], cwd=Path(__file__).parents[2], stdout=into)
        for name in "ab"
    ]
    os.close(into)
    with open(out, "rb", buffering=0) as pipe:
        # Little at a time, so that the pipe is full and the writers wait within what they write.
        read = b"".join(iter(lambda: pipe.read(1000), b""))
    assert [writer.wait(10) for writer in writers] == [0, 0]
    found = [json.loads(line) for line in read.splitlines()]
    assert len(found) == 2 * 20 * 150
    assert all(line["replica"] == f"gateway-{line['path'][0]}" and len(set(line["path"])) == 1 for line in found)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    found = context.current()
    assert found is not None
    found.subject, found.route = "u1", "/a/{b}"
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b"12345"})


async def receive() -> Message:
    return {"type": "http.request"}


async def send(_: Message) -> None: ...


async def asked(path: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Let a request come through the access log, whose answer is 204."""
    await RequestLog(answer)({"type": "http", "method": "GET", "path": path, "headers": headers}, receive, send)
    # The line is written at the end of the loop's turn.
    await asyncio.sleep(0)


async def test_an_access_line_is_the_same_by_the_short_way_and_by_structlog(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.set_up(service="users", replica="users-1", level="INFO")
    token = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ1In0.c2ln"
    sent = [(b"x-request-id", token.encode()), (b"traceparent", f"00-{'a' * 32}-{'b' * 16}-01".encode())]
    for path in ("/plain", f"/a/{token}", "/x" * 1000, "/ä?token=hunter2"):
        await asked(path, sent)
        monkeypatch.setattr(log, "_json_lines", None)
        await asked(path, sent)
        log.set_up(service="users", replica="users-1", level="INFO")
    found = lines(capfdbinary)
    assert len(found) == 8
    for short, long in zip(found[::2], found[1::2], strict=True):
        for line in (short, long):
            assert str(line.pop("time")).endswith("Z")
            assert float(str(line.pop("duration_ms"))) >= 0
        assert short == long
    assert (found[0]["path"], found[0]["status"], found[0]["body_bytes"]) == ("/plain", 204, 5)
    assert token not in str(found)
    assert "hunter2" not in str(found)


async def test_access_lines_of_one_turn_of_the_loop_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(log, "_json_lines", log.JsonLines(tail=b"}\n", write=written.append))
    app = RequestLog(answer)
    scopes = [{"type": "http", "method": "GET", "path": f"/{n}", "headers": []} for n in range(3)]
    await asyncio.gather(*(app(scope, receive, send) for scope in scopes))
    await asyncio.sleep(0)
    assert [json.loads(line)["path"] for line in b"".join(written).splitlines()] == ["/0", "/1", "/2"]
    assert len(written) == 1
    await app(scopes[0], receive, send)
    await asyncio.sleep(0)
    assert len(written) == 2


async def test_probes_are_not_on_info_by_the_short_way(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log.set_up(service="users", replica="users-1", level="INFO")
    await asked("/ready", [])
    assert lines(capfdbinary) == []


@given(st.text(alphabet="eyJ=:/?&Bearrtokn_.@ \n"))
def test_the_quick_look_misses_nothing_that_the_pattern_masks(text: str) -> None:
    assert log.mask(text) == log._SECRET_TEXT.sub(log._masked, text)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("ada.lovelace+x@example.com", "a***@e***.com"),
        ("no user ada@example.co.uk, said grace@navy.mil", "no user a***@e***.uk, said g***@n***.mil"),
        ("/users?email=ada%40example.com&limit=5", "/users?email=a***@e***.com&limit=5"),
        ("<ada@example.com>", "<a***@e***.com>"),
        ("nats://127.0.0.1:4222 and @decorator and 3 @ 4", "nats://127.0.0.1:4222 and @decorator and 3 @ 4"),
    ],
)
def test_email_addresses_are_masked_wherever_they_stand(text: str, masked: str) -> None:
    assert log.mask(text) == masked


def test_a_long_text_of_ats_and_dots_is_masked_in_time_of_its_length() -> None:
    assert "@" in log.mask("@" * 4000 + "a." * 2000 + "@" + "b-" * 2000)
