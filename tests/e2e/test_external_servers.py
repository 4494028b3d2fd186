"""The fleet on servers that it did not start: NATS_URL, REDIS_URL and DATABASE_URL replace the embedded ones."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest

from tests.fleet import OwnFleet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif("ROUNDHOUSE_URL" in os.environ, reason="the fleet at ROUNDHOUSE_URL has its servers already"),
]


def test_a_fleet_on_external_servers_stores_its_users_there(nats_url: str, redis_url: str, postgres_url: str) -> None:
    servers = {"NATS_URL": nats_url, "REDIS_URL": redis_url, "DATABASE_URL": postgres_url}
    body = {"username": "external", "email": "external@example.com", "password": "long enough 1"}

    with TemporaryDirectory(prefix="rh-t-") as home:
        fleet = OwnFleet(Path(home))
        for answer in (201, 409):  # the second run finds what the first one stored
            try:
                fleet.up(**servers)
                rows = fleet.rows()
                assert all(rows[name]["pid"] is None for name in ("nats", "valkey", "postgres"))
                assert httpx2.post(f"{fleet.url}/users", json=body, timeout=15).status_code == answer
            finally:
                fleet.ok("down")


def test_a_malformed_server_url_is_one_sentence_without_the_password() -> None:
    with TemporaryDirectory(prefix="rh-t-") as home:
        done = OwnFleet(Path(home)).verb(
            "up", "--detach", "--ephemeral", "--port", "0", NATS_URL="http://u:hunter2@host"
        )
    assert done.returncode != 0
    assert "NATS_URL" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
