"""Facts about log lines: each format is understood, files stay bounded, and `-f` survives the trimming."""

import json
from pathlib import Path

import pytest

from dev.errors import CannotRun
from dev.logfiles import trim
from dev.logs import Line, render, select, show_logs, understand
from dev.process import open_log


def test_a_service_line_reads_as_time_level_event_and_pairs() -> None:
    raw = json.dumps(
        {
            "timestamp": "2026-11-23T03:00:00.5Z",
            "level": "warning",
            "event": "slow",
            "ms": 12,
            "path": "/a b",
            "x": None,
        }
    )

    line = understand(raw)

    assert (line.level, line.text) == ("warning", 'slow ms=12 path="/a b"')
    assert line.at == 1795402800.5


@pytest.mark.parametrize(
    ("raw", "level", "text"),
    [
        ("[11877] 2026/11/23 03:00:00.500000 [WRN] careful", "warning", "careful"),
        ("2026-11-23 03:00:00.500 UTC [11911] FATAL:  no", "error", "no"),
        ("11879:M 23 Nov 2026 03:00:00.500 * Ready", "info", "Ready"),
    ],
)
def test_server_lines_are_understood(raw: str, level: str, text: str) -> None:
    assert understand(raw) == Line(1795402800.5, level, text)


@pytest.mark.parametrize("raw", ["Traceback (most recent call last):", '{"torn": ', "[1, 2]", ""])
def test_any_other_line_is_its_own_text(raw: str) -> None:
    assert understand(raw) == Line(None, "info", raw)


def test_lines_of_several_processes_are_merged_by_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seconds in (("users-1", (1, 3)), ("gateway-1", (2, 4))):
        lines = [json.dumps({"timestamp": f"2026-11-23T03:00:0{s}Z", "event": f"e{s}"}) for s in seconds]
        (tmp_path / f"{name}.log").write_text("\n".join(lines) + "\n")

    show_logs(tmp_path, None, follow=False)

    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["e1", "e2", "e3", "e4"]


def test_a_name_picks_a_service_or_one_replica(tmp_path: Path) -> None:
    for name in ("users-1", "users-2", "nats"):
        (tmp_path / f"{name}.log").touch()

    assert sorted(select(tmp_path, "users")) == ["users-1", "users-2"]
    assert sorted(select(tmp_path, "users-2")) == ["users-2"]
    assert sorted(select(tmp_path, "nats")) == ["nats"]
    with pytest.raises(CannotRun, match="one of nats, users"):
        select(tmp_path, "orders")


def test_colours_are_for_terminals_only() -> None:
    line = Line(None, "error", "no")

    assert "\x1b" not in render("users-1", line, colour=False)
    assert "\x1b[31m" in render("users-1", line, colour=True)


def test_a_long_log_is_cut_in_place_and_one_older_kept(tmp_path: Path) -> None:
    import os

    log = tmp_path / "users-1.log"
    writer = open_log(log)
    try:
        os.write(writer, b"x" * 200)

        assert trim(log, bytes_max=100)
        os.write(writer, b"after\n")

        assert log.read_bytes() == b"after\n"
        assert (tmp_path / "users-1.log.1").read_bytes() == b"x" * 200
        assert not trim(log, bytes_max=100)
    finally:
        os.close(writer)
