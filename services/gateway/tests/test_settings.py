"""The gateway's settings: what they mean and how a bad one is refused."""

import pytest

from services.gateway.domain.config import check
from services.gateway.settings import GatewaySettings
from shared.settings import SettingsError, load

ROUTE = '[[routes]]\npath = "/a/*"\nservice = "a"\nmethods = ["GET"]\nauth = "public"\n'


def _table(settings):
    return check(settings.read_config(settings.config))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "development")


def test_defaults_serve_the_platforms_routes():
    settings = load(GatewaySettings)
    assert settings.port == 8080
    assert _table(settings).resolve("POST", "/auth/token") is not None
    assert settings.origin_names == {"http://localhost:3000"}
    assert settings.metrics_auth == "signed_in"
    assert settings.private_port is None


def test_production_is_stricter(monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("NATS_URL", "nats://user:password@nats:4222")
    monkeypatch.setenv("REDIS_URL", "redis://:password@valkey:6379/0")
    settings = load(GatewaySettings)
    assert settings.origin_names == frozenset()
    assert settings.metrics_auth == "admin"


@pytest.mark.parametrize("variable", ["NATS_URL", "REDIS_URL"])
def test_what_one_process_alone_would_know_is_refused_in_production(monkeypatch, variable):
    monkeypatch.setenv("ENVIRONMENT", "production")
    for name, url in (("NATS_URL", "nats://user:password@nats:4222"), ("REDIS_URL", "redis://valkey:6379/0")):
        monkeypatch.setenv(name, "memory://" if name == variable else url)
    with pytest.raises(SettingsError, match=rf"{variable} is memory://, which production refuses"):
        load(GatewaySettings)
    assert load(GatewaySettings, serves=False).is_production


def test_routes_file_replaces_the_table(monkeypatch, tmp_path):
    path = tmp_path / "routes.toml"
    path.write_text(ROUTE)
    monkeypatch.setenv("RH_GATEWAY_CONFIG_FILE", str(path))
    table = _table(load(GatewaySettings))
    assert table.resolve("GET", "/a/x") is not None
    assert table.resolve("POST", "/auth/token") is None


def test_bad_routes_file_is_refused_with_the_route_and_the_fix(monkeypatch, tmp_path):
    path = tmp_path / "routes.toml"
    path.write_text("\n" + ROUTE + ROUTE)
    monkeypatch.setenv("RH_GATEWAY_CONFIG_FILE", str(path))
    with pytest.raises(SettingsError, match=r"RH_GATEWAY_CONFIG: .*/routes.toml:10:12: route /a/\*: GET is claimed"):
        load(GatewaySettings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RH_GATEWAY_ENDPOINTS", "users"),
        ("RH_GATEWAY_FD", "x"),
        ("RH_GATEWAY_FD", "1"),
        ("RH_GATEWAY_METRICS_ACCESS", "all"),
        ("RH_GATEWAY_PORTS", "1"),
        ("RH_GATEWAY_ALLOW", "10.0.0.1/8"),
        ("RH_GATEWAY_EXEMPT", "localhost"),
        ("RH_GATEWAY_TRUSTED_PROXIES", "10.0.0.0/33"),
    ],
)
def test_bad_variable_is_refused_by_name(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        load(GatewaySettings)


def test_private_port_is_only_known_beside_a_public_socket(monkeypatch):
    monkeypatch.setenv("RH_GATEWAY_PORT", "4001")
    assert load(GatewaySettings).private_port is None
    monkeypatch.setenv("RH_GATEWAY_FD", "5")
    assert load(GatewaySettings).private_port == 4001


def test_body_limit_holds_for_every_route_of_the_default_table(monkeypatch):
    monkeypatch.setenv("RH_GATEWAY_BODY_BYTES_MAX", "2048")
    assert {route.body_bytes_max for route in load(GatewaySettings).read_config("").routes} == {2048}
