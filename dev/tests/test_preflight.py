"""Facts about what is looked at ahead of starting."""

import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from dev import preflight
from dev.errors import CannotRun

Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_told_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 10**9, 5 * 2**20))

    with pytest.raises(CannotRun, match=r"Only 5 MiB are free .* --data-dir"):
        preflight.check_disk(tmp_path / "not" / "made")


def test_the_holder_of_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert str(preflight.port_holder(port)).startswith(f"process {os.getpid()} (")

    assert preflight.port_holder(port) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o000)

    with pytest.raises(CannotRun, match="Permission denied"):
        preflight.check_folder(tmp_path / "data")
