"""The compose lane: runs where its folder is named and a Docker engine answers; else one line says why not."""

import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.compose.stack import ROOT, Stack, own_stack, run, why_no_engine

HERE = Path(__file__).parent
# Where no registry can be reached, a folder beside the checkout may know how to make an engine and the public images.
STANDINS = ROOT.parent / "shared" / "standins"
STANDINS_TIMEOUT_S = 400


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents and "engine" in getattr(item, "fixturenames", ())]
    if not any("tests/compose" in str(argument) for argument in config.invocation_params.args):
        for item in mine:
            item.add_marker(pytest.mark.skip(reason="make e2e-compose runs the fleet in containers"))


def public_images() -> list[str]:
    """Return the images that the Dockerfile and compose.yaml take from elsewhere."""
    text = (ROOT / "Dockerfile").read_text() + (ROOT / "compose.yaml").read_text()
    found = re.findall(r"(?m)^\s*(?:FROM|image:) ([a-z0-9./_-]+:[\w.-]+)(?:\s|$)", text)
    return sorted(set(found))


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine; tests that ask are skipped where there is none."""
    for step in ((str(STANDINS / "dockerd-up"),), (str(STANDINS / "build"), *public_images())):
        if STANDINS.is_dir() and (done := run(*step, timeout_s=STANDINS_TIMEOUT_S)).returncode != 0:
            pytest.skip(f"{Path(step[0]).name} of the stand-ins failed: {done.stderr.strip()[-200:]}")
    if reason := why_no_engine():
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the containers said where a test fails: they are gone when somebody reads about it."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack") or getattr(item, "funcargs", {}).get("old_stack")
    if isinstance(stack, Stack) and report.when == "call" and report.failed:
        report.sections.append(("containers", stack.shown()))
    return report


@pytest.fixture(scope="session")
def stack(engine: None) -> Iterator[Stack]:
    """The fleet with two replicas of users and realtime, as the e2e tests have it on one machine."""
    with own_stack() as found:
        found.compose("build", timeout_s=400)
        found.up("--scale", "users=2", "--scale", "realtime=2")
        found.until_state("up")
        yield found
