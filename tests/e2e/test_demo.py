"""`make demo` as somebody runs it: with the fleet of this machine, and with nothing but a URL."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.fleet import ROOT, OwnFleet, own_fleet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif("ROUNDHOUSE_URL" in os.environ, reason="these start a fleet that no other test asks"),
]


@pytest.fixture(scope="module")
def plain_fleet() -> Iterator[OwnFleet]:
    """A fleet with the limits that everybody meets."""
    with own_fleet("--replicas", "gateway=2", RH_GATEWAY_EXEMPT="") as found:
        yield found


def demo(**environment: str) -> str:
    """Return what the tour printed; it must have gone well."""
    done = subprocess.run(
        [sys.executable, "-m", "dev.demo"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_tour_of_the_fleet_here_meets_a_limit_and_an_open_breaker(plain_fleet: OwnFleet) -> None:
    said = demo(ROUNDHOUSE_STATE_DIR=str(plain_fleet.home))
    assert f"at {plain_fleet.url}" in said
    assert "-> 429 rate_limited" in said
    assert "Retry-After:" in said
    assert "the next -> 503 breaker_open" in said
    assert "health wakes -> 200" in said
    assert {row["state"] for row in plain_fleet.rows().values()} == {"ready"}


def test_tour_by_url_says_what_it_cannot_do(plain_fleet: OwnFleet) -> None:
    said = demo(ROUNDHOUSE_URL=plain_fleet.url)
    assert "-> 429 rate_limited" in said
    assert "here is only a URL" in said
