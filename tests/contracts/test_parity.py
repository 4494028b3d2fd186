"""dev/fleet.py is THE list of the fleet; compose.yaml has the same services with the same needs and only settings they know."""

import importlib
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dev.fleet import FLEET, INFRA, Service
from shared.settings import Settings, variable_of

ROOT = Path(__file__).parents[2]
COMMON = {"ENVIRONMENT", "LOG_LEVEL"}
PUBLIC_PORT = 8080
PUBLIC_SETTINGS = ("WORKERS", "EXEMPT", "ALLOW", "TRUSTED_PROXIES", "ORIGINS", "ADMIN_ACCESS", "CONFIG")
"""Of the public service, chosen in .env."""
CHOSEN_AS_WELL = {"users": ("ORIGINS", "MAIL_URL", "MAIL_FROM", "MAIL_LINK_VERIFY", "MAIL_LINK_RESET", "PUBLIC_URL")}
"""Of another service."""


@cache
def compose() -> dict[str, Any]:
    """Return compose.yaml as compose itself reads it; that needs its program, but no engine."""
    if shutil.which("docker") is None:
        pytest.skip("compose.yaml is read by docker compose, which is not installed")
    command = ("docker", "compose", "--env-file", ".env.example", "config", "--format", "json")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    if "is not a docker command" in done.stderr or "unknown flag: --env-file" in done.stderr:
        pytest.skip("docker has no compose")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def settings_of(service: Service) -> type[Settings]:
    module = importlib.import_module(f"{service.module}.settings")
    (found,) = {
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Settings) and item.service == service.name
    }
    return found


def test_compose_has_the_servers_and_services_of_the_fleet() -> None:
    wanted = {service.name for service in FLEET.services} | {server.name for server in INFRA}
    assert set(compose()["services"]) == wanted


@pytest.mark.parametrize("service", FLEET.services, ids=lambda service: service.name)
def test_a_service_gets_its_servers_and_what_the_runner_gives_it(service: Service) -> None:
    given = compose()["services"][service.name]["environment"]
    variables = {server.name: server.variable for server in INFRA}
    secrets = {f"{service.prefix}{name.removesuffix('_FILE')}" for name in service.secret_files}
    more = PUBLIC_SETTINGS if service.public else CHOSEN_AS_WELL.get(service.name, ())
    own = {f"{service.prefix}{name}" for name in ("HOST", "PORT", "ENDPOINTS", *more)}

    assert set(given) == COMMON | {variables[need] for need in service.needs} | secrets | own

    settings = settings_of(service)
    known = {variable_of(settings, name, field) for name, field in settings.model_fields.items()}
    assert set(given) <= known


@pytest.mark.parametrize("service", FLEET.services, ids=lambda service: service.name)
def test_a_service_waits_for_what_it_needs_until_it_is_healthy(service: Service) -> None:
    waits_for = compose()["services"][service.name].get("depends_on", {})
    others = {other.name for other in FLEET.services if other is not service}
    assert set(waits_for) == set(service.needs) | (others if service.public else set())
    assert {wait["condition"] for wait in waits_for.values()} <= {"service_healthy"}


@pytest.mark.parametrize("service", FLEET.services, ids=lambda service: service.name)
def test_a_service_is_built_from_its_own_code_and_looks_for_the_others_where_they_listen(service: Service) -> None:
    found = compose()["services"]
    assert found[service.name]["build"]["args"] == {"SERVICE": service.name}
    assert service.module == f"services.{service.name}"
    listening = {
        other.name: f"{other.name}:{found[other.name]['environment'][f'{other.prefix}PORT']}"
        for other in FLEET.services
    }
    told = found[service.name]["environment"][f"{service.prefix}ENDPOINTS"]
    assert dict(item.split("=") for item in told.split(",")) == listening


def test_only_the_public_service_is_published_and_by_its_port_8080() -> None:
    published = {name: service["ports"] for name, service in compose()["services"].items() if service.get("ports")}
    assert FLEET.public is not None
    assert set(published) == {FLEET.public.name}
    ((port,),) = published.values()
    assert (port["target"], port["published"], port["host_ip"]) == (PUBLIC_PORT, "8080", "127.0.0.1")


def test_servers_are_out_of_reach_for_whom_they_are_not() -> None:
    services = compose()["services"]
    stores = set(services["postgres"]["networks"])
    assert stores == {"stores"}
    for service in FLEET.services:
        if not service.public:
            assert bool(stores & set(services[service.name]["networks"])) == bool(service.needs)
    assert {name for name, service in services.items() if "edge" in service["networks"]} == {"gateway"}
    own = set(services["gateway"]["networks"]) - {"fleet"}
    assert {name for name, service in services.items() if own & set(service["networks"])} == {
        "gateway",
        "nats",
        "valkey",
    }
    assert {name for name, service in services.items() if "mail" in service["networks"]} == {"users"}
    outward = {name for name, network in compose()["networks"].items() if not network.get("internal")}
    assert outward == {"edge", "mail"}


@pytest.mark.parametrize("name", sorted({"nats", "valkey", "postgres"} | {service.name for service in FLEET.services}))
def test_every_container_is_bounded_hardened_and_started_again(name: str) -> None:
    found = compose()["services"][name]
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["read_only"]
    assert found["init"]
    assert found["restart"] == "unless-stopped"
    assert {"cpus", "memory", "pids"} <= set(found["deploy"]["resources"]["limits"])
    assert found["logging"]["options"]["max-size"]
    assert "container_name" not in found


@pytest.mark.parametrize("service", FLEET.services, ids=lambda service: service.name)
def test_a_container_is_given_its_drain_and_five_seconds(service: Service) -> None:
    fields = settings_of(service).model_fields
    drain_s = float(fields["drain_wait_s"].default) + float(fields["drain_grace_s"].default)
    grace = compose()["services"][service.name]["stop_grace_period"]
    assert float(grace.removesuffix("s")) >= drain_s + 5
