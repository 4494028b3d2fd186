"""dev/fleet.py is THE list of the fleet; the chart has its services, needs and secrets, and only settings that they know."""

import base64
import json
import os
from pathlib import Path

import pytest

from charts.generate import DECIDED_BY_CHART, REFUSES_PROBES, SCHEMA, settings_of
from dev.fleet import FLEET, INFRA, Service
from shared.endpoints import Endpoints
from shared.settings import load, variable_of
from tests.charts.chart import Rendered, case_names, render

PUBLIC_PORT = 8080
MOUNT = "/run/roundhouse/"
NOT_OF_THE_RUNNER = {"users": {"RH_USERS_MAIL_URL"}}
"""Secrets of the chart that the runner does not make: its mails go to a folder."""

SERVICES = pytest.mark.parametrize("service", FLEET.services, ids=lambda service: service.name)


def test_the_chart_has_the_servers_and_services_of_the_fleet() -> None:
    rendered = render()

    assert set(rendered.of_kind("Deployment")) == {f"t-{service.name}" for service in FLEET.services}
    assert set(rendered.of_kind("StatefulSet")) == {f"t-{server.name}" for server in INFRA}


@SERVICES
def test_a_service_gets_its_servers_its_secrets_and_its_own_settings(service: Service) -> None:
    given = render().variables(service.name)
    urls = {server.variable for server in INFRA if server.name in service.needs}

    files = {name.removesuffix("_FILE") for name in given if name.endswith("_FILE")}
    own = {f"{service.prefix}{name.removesuffix('_FILE')}" for name in service.secret_files}
    assert files == urls | own | NOT_OF_THE_RUNNER.get(service.name, set())
    for setting, secret in service.secret_files.items():
        assert given[service.prefix + setting] == MOUNT + secret
    assert given["ENVIRONMENT"] == "production"
    for name in DECIDED_BY_CHART - {"FD"}:
        assert f"{service.prefix}{name}" in given


def settled(rendered: Rendered, service: Service, folder: Path) -> dict[str, str]:
    """Return a service's environment as in its pod, its mounted files being in `folder`."""
    values = {}
    for secret in rendered.of_kind("Secret").values():
        values |= {key: base64.b64decode(text) for key, text in secret["data"].items()}
    found = rendered.variables(service.name)
    for name, value in found.items():
        if value.startswith(MOUNT):
            file = folder / value.removeprefix(MOUNT)
            file.write_bytes(values[file.name])
            found[name] = str(file)
    found[f"{service.prefix}REPLICA"] = f"t-{service.name}-6d5f8c9b7-x2x4z"
    return found


@SERVICES
@pytest.mark.parametrize("case", [name for name in case_names() if name not in ("ha", "mixed")])
def test_a_service_starts_with_what_it_is_given(
    case: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = render(case)
    if service.name not in dict(rendered.pods()):
        return
    for name in os.environ:
        monkeypatch.delenv(name)
    for name, value in settled(rendered, service, tmp_path).items():
        monkeypatch.setenv(name, value)

    found = load(settings_of(service))

    assert (found.host, found.port) == ("0.0.0.0", 8000)
    Endpoints(found.endpoints)
    for server in INFRA:
        if server.name in service.needs:
            url = getattr(found, server.variable.lower()).get_secret_value()
            assert url.partition("://")[0] in server.schemes


@SERVICES
def test_every_setting_can_be_set(service: Service) -> None:
    settings = settings_of(service)
    names = {variable_of(settings, name, field) for name, field in settings.model_fields.items()}
    given = set(render().variables(service.name))
    excepted = {f"{service.prefix}{name}" for name in DECIDED_BY_CHART | REFUSES_PROBES}
    secret = {f"{service.prefix}{name.removesuffix('_FILE')}" for name in service.secret_files}
    listed = json.loads(SCHEMA.read_text())["definitions"][f"settings-{service.name}"]["properties"]
    settable = {service.prefix + name for name in listed}
    assert names - settable - excepted - secret - {name.removesuffix("_FILE") for name in given} == set()


def test_only_the_public_service_has_a_port_for_clients() -> None:
    rendered = render()
    for service in FLEET.services:
        (container,) = rendered.pod(service.name)["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == ({"http": 8000, "public": PUBLIC_PORT} if service.public else {"http": 8000})
        if service.public:
            assert container["args"] == ["0.0.0.0", str(PUBLIC_PORT), f"{service.prefix}FD", service.module]
        else:
            assert "command" not in container
        assert container["image"] == f"roundhouse-{service.name}:0.1.0"
