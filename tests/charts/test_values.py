"""Values: a wrong one is refused with the place it is at and what would be right; the README's table is current."""

import re

import pytest

from charts import generate
from tests.charts.chart import CHART, HelmRefused, read_yaml, render

WITHOUT_STORES = "bundled: {nats: {enabled: false}, valkey: {enabled: false}, postgres: {enabled: false}}\n"
URLS = "external: {natsUrl: 'nats://b:4222', redisUrl: 'redis://c:6379', databaseUrl: 'postgresql://u:p4ss@d/x'}\n"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("service: {users: {}}", r"additional properties 'service' not allowed"),
        ("services: {userz: {}}", r"'/services': additional properties 'userz' not allowed"),
        ("services: {users: {replica: 2}}", r"'/services/users': additional properties 'replica' not allowed"),
        (
            "services: {users: {autoscaling: {maxReplicas: 3}}}",
            r"autoscaling': additional properties 'maxReplicas' not",
        ),
        (
            "services: {users: {settings: {REQUIRE_IFMATCH: true}}}",
            r"additional properties 'REQUIRE_IFMATCH' not allowed",
        ),
        ("services: {gateway: {settings: {SLOTS: 2}}}", r"'/services/gateway/settings': additional properties 'SLOTS'"),
        ("services: {compute: {settings: {SLOTS: 999}}}", r"settings/SLOTS': maximum: got 999, want 256"),
        ("services: {compute: {settings: {SLOTS: two}}}", r"settings/SLOTS': got string, want integer"),
        ("services: {users: {settings: {PORT: 9000}}}", r"additional properties 'PORT' not allowed"),
        (
            "services: {users: {env: {RH_USERS_HASH_PASSES: 3}}}",
            r"services\.users\.env\.RH_USERS_HASH_PASSES is decided elsewhere: settings of the",
        ),
        ("services: {users: {env: {NATS_URL_FILE: /x}}}", r"services\.users\.env\.NATS_URL_FILE is decided elsewhere"),
        ("services: {users: {env: {MY-NAME: x}}}", r"users/env': additional properties 'MY-NAME' not allowed"),
        ("services: {users: {stores: [mysql]}}", r"value must be one of 'nats', 'valkey', 'postgres'"),
        ("services: {users: {calls: [nobody]}}", r"/services/users/calls/0"),
        ("services: {users: {resources: {requests: {memory: 128MB}}}}", r"requests/memory': '128MB' does not match"),
        ("services: {users: {image: {digest: abc}}}", r"image/digest': 'abc' does not match pattern"),
        ("environment: prod", r"value must be one of 'development', 'test', 'production'"),
        ("logLevel: info", r"value must be one of 'DEBUG', 'INFO', 'WARNING', 'ERROR'"),
        ("fullnameOverride: Bad_Name", r"fullnameOverride': 'Bad_Name' does not match pattern"),
        ("bundled: {redis: {enabled: true}}", r"'/bundled': additional properties 'redis' not allowed"),
        ("external: {natsURL: 'nats://b:4222'}", r"'/external': additional properties 'natsURL' not allowed"),
        ("networkPolicy: {metricsFrom: [{}]}", r"metricsFrom/0': minProperties: got 0, want 1"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_name(values: str, said: str) -> None:
    with pytest.raises(HelmRefused, match=said):
        render(values=values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            WITHOUT_STORES,
            r"external\.databaseUrl is missing: bundled\.postgres\.enabled is false, so say where it is|"
            r"external\.natsUrl is missing|secrets\.keySeal is missing",
        ),
        (
            "bundled: {nats: {enabled: false}}",
            r"external\.natsUrl is missing: bundled\.nats\.enabled is false, so say where",
        ),
        (WITHOUT_STORES + URLS, r"secrets\.keySeal is missing: with external PostgreSQL give it, or name a Secret"),
        (
            WITHOUT_STORES + URLS + "secrets: {keySeal: 0123456789abcdef}",
            r"secrets\.adminPassword is missing: with external PostgreSQL",
        ),
        (
            WITHOUT_STORES + URLS + "secrets: {keySeal: short, adminPassword: long-enough}",
            r"secrets\.keySeal is shorter than 16 characters",
        ),
        ("secrets: {adminPassword: short}", r"secrets\.adminPassword is shorter than 8 characters"),
        (
            "bundled: {nats: {enabled: false}}\nexternal: {natsUrl: 'http://b:4222'}",
            r"external\.natsUrl must begin with nats:// or tls://",
        ),
        (
            "bundled: {valkey: {enabled: false}}\nexternal: {redisUrl: 'valkey://:p4ss@c:6379'}",
            r"external\.redisUrl must begin with redis:// or rediss://",
        ),
    ],
)
def test_missing_or_wrong_addresses_and_secrets_are_refused_with_the_fix(values: str, said: str) -> None:
    with pytest.raises(HelmRefused, match=said) as refused:
        render(values=values)
    assert "p4ss" not in str(refused.value)


def test_a_release_name_that_would_not_fit_is_refused() -> None:
    with pytest.raises(HelmRefused, match="has more than 40 characters: give a shorter release name or set"):
        render(release="a" * 41)


def test_external_stores_need_nothing_but_the_names_of_two_secrets() -> None:
    named = "external: {existingSecret: a}\nsecrets: {existingSecret: b}"

    assert not render(values=WITHOUT_STORES + named).of_kind("Secret")


def test_schema_and_table_are_current() -> None:
    assert generate.main(["--check"]) is None


def test_every_value_is_in_the_table() -> None:
    (values,) = read_yaml((CHART / "values.yaml").read_text())
    described = {path for path, _, _ in generate.rows((CHART / "values.yaml").read_text())}

    def undescribed(part: object, path: str) -> list[str]:
        if path in described or path == "services":
            return []
        if not isinstance(part, dict) or not part:
            return [path]
        return [found for key, value in part.items() for found in undescribed(value, f"{path}.{key}".lstrip("."))]

    assert undescribed(values, "") == []
    assert len(described) > 80


def test_large_numbers_reach_the_service_as_they_were_written() -> None:
    found = render("tuned").variables("users")

    assert found["RH_USERS_BODY_BYTES_MAX"] == "2097152"
    assert found["RH_USERS_SESSION_LASTS_S"] == "2592000"
    assert found["RH_USERS_OTLP_ENDPOINT"] == "http://otel-collector.monitoring:4318"
    assert found["SSL_CERT_FILE"] == "/etc/ssl/certs/ca-certificates.crt"


def test_the_guide_names_only_values_that_there_are() -> None:
    guide = (generate.ROOT / "docs" / "deploy-kubernetes.md").read_text()
    described = {path for path, _, _ in generate.rows((CHART / "values.yaml").read_text())}
    parents = {path.rsplit(".", count)[0] for path in described for count in range(1, path.count(".") + 1)}
    names = set(
        re.findall(
            r"(?:--set(?:-string)? |`)((?:defaults|services|bundled|external|secrets|ingress)\.[A-Za-z.]+)", guide
        )
    )

    assert names
    for name in names:
        generic = re.sub(r"^services\.[a-z]+", "defaults", name)
        # The keys of a map of settings are held by the schema, not by the table.
        assert generic in described | parents or ".settings." in generic, name
