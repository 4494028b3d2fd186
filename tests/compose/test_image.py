"""The Dockerfile, as a linter of such files reads it."""

import subprocess

import pytest

from tests.charts.chart import tool
from tests.compose.stack import ROOT


@pytest.mark.slow
def test_the_dockerfile_is_clean() -> None:
    command = [str(tool("hadolint")), "--no-color", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "")
