"""All upstreams: in step with the endpoints and the configuration, and what a scrape shows of them."""

import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.gateway.lane.attempt import Outcome
from services.gateway.lane.upstream_metrics import UpstreamMetrics
from services.gateway.lane.upstreams import Upstreams
from services.gateway.model import BreakerPolicy, ServicePolicy
from services.gateway.tests.rig import write_endpoints
from shared.breaker import State
from shared.endpoints import Endpoints
from shared.errors import Unavailable

LABELS = ("service", "replica", "outcome", "reason")
QUICK = ServicePolicy(breaker=BreakerPolicy(window=10, volume_min=4))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "endpoints.json"
    write_endpoints(path, {"users": ["127.0.0.1:1", "127.0.0.1:2"], "health": ["[::1]:9"]})
    return path


@pytest.fixture
async def endpoints(file: Path) -> Endpoints:
    found = Endpoints(file.as_uri())
    await found.refresh()
    return found


def kill(upstreams: Upstreams, name: str) -> None:
    upstream = upstreams.of(name)
    while upstream.state is State.CLOSED:
        upstream.begin().end(Outcome.FAILED)


def test_a_service_has_one_upstream(endpoints):
    upstreams = Upstreams(endpoints)
    assert upstreams.of("users") is upstreams.of("users")
    assert [replica.address[1] for replica in upstreams.of("users").replicas] == [1, 2]
    assert upstreams.of("unknown").begin() is None


async def test_new_endpoints_are_taken_over_at_once(endpoints, file):
    upstreams = Upstreams(endpoints)
    users = upstreams.of("users")
    users.drain(("127.0.0.1", 2))
    write_endpoints(file, {"users": ["127.0.0.1:2", "127.0.0.1:3"]})
    await endpoints.refresh()
    assert [(replica.address[1], replica.is_drained) for replica in users.replicas] == [(2, True), (3, False)]


def test_reload_leaves_services_alone_whose_policy_is_the_same(endpoints):
    upstreams = Upstreams(endpoints, {"users": QUICK, "health": QUICK})
    kill(upstreams, "users")
    kill(upstreams, "health")
    upstreams.reconfigure({"users": QUICK})
    assert upstreams.of("users").state is State.OPEN
    assert upstreams.of("health").state is State.CLOSED
    assert upstreams.of("health").policy == ServicePolicy()


def test_hooks_hear_of_services_made_before_and_after(endpoints):
    upstreams = Upstreams(endpoints, {"users": QUICK, "health": QUICK})
    upstreams.of("users")
    told: list[str] = []
    upstreams.on_breaker_change.append(lambda service, replica, _, now: told.append(f"{service} {replica} {now.value}"))
    kill(upstreams, "users")
    kill(upstreams, "health")
    assert "users None open" in told
    assert "health ('::1', 9) open" in told


def test_description_is_json_by_service(endpoints):
    upstreams = Upstreams(endpoints)
    upstreams.of("users")
    upstreams.of("health")
    found = json.loads(json.dumps(upstreams.describe()))
    assert list(found) == ["health", "users"]
    assert [replica["address"] for replica in found["users"]["replicas"]] == ["127.0.0.1:1", "127.0.0.1:2"]


def samples(upstreams: Upstreams) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    UpstreamMetrics(registry, upstreams)
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = [sample.labels[key] for key in LABELS if key in sample.labels]
            found[(sample.name, *labels)] = sample.value
    return found


def test_scrape_shows_services_and_replicas(endpoints):
    upstreams = Upstreams(endpoints, {"health": ServicePolicy(in_flight_max=5, breaker=QUICK.breaker)})
    kill(upstreams, "health")
    with pytest.raises(Unavailable):
        upstreams.of("health").admit()
    users = upstreams.of("users")
    users.begin().end(Outcome.OK)
    attempt = users.begin()
    users.drain(attempt.address)
    users.may_retry("GET", has_idempotency_key=False, outcome=Outcome.FAILED, tried=[attempt.address])

    found = samples(upstreams)

    assert found["upstream_breaker", "health"] == 1
    assert found["upstream_breaker", "users"] == 0
    assert found["upstream_shed_total", "health", "breaker_open"] == 1
    assert found["upstream_shed_total", "users", "overloaded"] == 0
    assert found["upstream_in_flight", "users"] == 1
    assert found["upstream_in_flight_limit", "health"] == 5
    assert found["upstream_retries_total", "users"] == 1
    assert found["upstream_retries_denied_total", "users"] == 0
    assert found["upstream_replica_breaker", "health", "[::1]:9"] == 1
    assert found["upstream_replica_attempts_total", "health", "[::1]:9", "failed"] == 4
    replicas = ["127.0.0.1:1", "127.0.0.1:2"]
    for name in ("upstream_replica_drained", "upstream_replica_in_flight"):
        assert sum(found[name, "users", replica] for replica in replicas) == 1
    assert sum(found["upstream_replica_attempts_total", "users", replica, "ok"] for replica in replicas) == 1


async def test_series_of_a_replica_end_with_it(endpoints, file):
    upstreams = Upstreams(endpoints)
    upstreams.of("users")
    write_endpoints(file, {"users": ["127.0.0.1:3"]})
    await endpoints.refresh()
    replicas = {key[2] for key in samples(upstreams) if key[0] == "upstream_replica_breaker"}
    assert replicas == {"127.0.0.1:3"}
