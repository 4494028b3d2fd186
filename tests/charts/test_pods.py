"""Every pod: how it is probed, drained, confined and given its secrets."""

import base64
import copy
import hashlib

import pytest

from tests.charts.chart import SERVICES, HelmRefused, Object, case_names, render

STORES = ("nats", "postgres", "valkey")

CASES = pytest.mark.parametrize("case", case_names(), ids=lambda name: name or "defaults")


def container_of(pod: Object) -> Object:
    (container,) = pod["spec"]["containers"]
    found: Object = container
    return found


@CASES
def test_each_container_has_all_three_probes(case: str) -> None:
    for component, pod in render(case).pods():
        container = container_of(pod)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert probe in container, (component, probe)
        if component in SERVICES:
            assert container["startupProbe"]["httpGet"] == {"path": "/live", "port": "http"}
            # One that asked other servers would restart the whole fleet when one of them is away.
            assert container["livenessProbe"]["httpGet"] == {"path": "/live", "port": "http"}
            assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}


@CASES
def test_the_grace_covers_the_whole_drain(case: str) -> None:
    rendered = render(case)
    for component, pod in rendered.pods():
        if component not in SERVICES:
            continue
        prefix, variables = f"RH_{component.upper()}_", rendered.variables(component)
        sleep_s = container_of(pod).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain_s = float(variables[f"{prefix}DRAIN_WAIT_S"]) + float(variables[f"{prefix}DRAIN_GRACE_S"])
        assert pod["spec"]["terminationGracePeriodSeconds"] >= sleep_s + drain_s + 5


def test_a_grace_that_is_too_short_is_refused() -> None:
    with pytest.raises(HelmRefused, match=r"services\.users\.terminationGracePeriodS is 25, but .* \+ 5 is 26"):
        render(values="services: {users: {terminationGracePeriodS: 25}}")
    render(values="services: {users: {terminationGracePeriodS: 26}}")


def broken_rules(pod: Object) -> list[str]:
    """Return what a pod breaks of the restricted profile of the Pod Security Standards, and of our own rules."""
    spec = pod["spec"]
    security = spec["securityContext"]
    found = [part for part in ("hostNetwork", "hostPID", "hostIPC") if spec.get(part)]
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser", 0) > 0:
        found.append("runs as root")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("no seccomp profile")
    if spec.get("automountServiceAccountToken") is not False:
        found.append("has a token")
    if spec.get("enableServiceLinks") is not False:
        found.append("service links")
    if not spec.get("serviceAccountName"):
        found.append("the namespace's service account")
    allowed = {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"}
    found += [f"volume {volume['name']}" for volume in spec["volumes"] if set(volume) - {"name"} - allowed]
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        found += _broken_by_container(container)
    return found


def _broken_by_container(container: Object) -> list[str]:
    security, found = container.get("securityContext", {}), []
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        found.append("privileges")
    if security.get("readOnlyRootFilesystem") is not True:
        found.append("writable root")
    if security.get("capabilities") != {"drop": ["ALL"]}:
        found.append("capabilities")
    if not {"cpu", "memory"} <= set(container["resources"]["requests"]):
        found.append("no requests")
    if "memory" not in container["resources"]["limits"]:
        found.append("no limit for memory")
    if any("hostPort" in port or "protocol" not in port for port in container["ports"]):
        found.append("ports")
    if container["image"].endswith(":latest") or ":" not in container["image"]:
        found.append("image without a version")
    return found


@CASES
def test_every_pod_keeps_to_the_restricted_profile(case: str) -> None:
    for component, pod in render(case).pods():
        assert broken_rules(pod) == [], component


def test_the_policy_check_sees_what_is_broken() -> None:
    bad = copy.deepcopy(render().pod("users"))
    bad["spec"] |= {"hostNetwork": True, "automountServiceAccountToken": True}
    bad["spec"]["containers"][0]["securityContext"]["capabilities"] = {"drop": ["ALL"], "add": ["NET_RAW"]}
    bad["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}})

    assert broken_rules(bad) == ["hostNetwork", "has a token", "volume host", "capabilities"]


@CASES
def test_nobody_has_a_token_of_the_cluster(case: str) -> None:
    rendered = render(case)
    accounts = rendered.of_kind("ServiceAccount")
    used = [pod["spec"]["serviceAccountName"] for _, pod in rendered.pods()]

    assert sorted(used) == sorted(accounts)
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    assert not [kind for kind in ("Role", "RoleBinding", "ClusterRole") if rendered.of_kind(kind)]


def secret_keys(pod: Object) -> set[tuple[str, str]]:
    """Return Secret and key of all that a pod mounts."""
    found = set()
    for volume in pod["spec"]["volumes"]:
        for source in volume.get("projected", {}).get("sources", ()):
            found |= {(source["secret"]["name"], item["key"]) for item in source["secret"]["items"]}
    return found


def test_a_service_sees_only_the_secrets_that_it_needs() -> None:
    rendered = render()

    urls = {("t-stores", key) for key in ("nats-url", "redis-url", "database-url")}
    assert secret_keys(rendered.pod("compute")) == {("t-stores", "nats-url")}
    assert secret_keys(rendered.pod("gateway")) == {("t-stores", "nats-url"), ("t-stores", "redis-url")}
    assert secret_keys(rendered.pod("realtime")) == {("t-stores", "nats-url")}
    assert secret_keys(rendered.pod("health")) == urls
    own = {("t-secrets", key) for key in ("admin-password", "key-seal", "mail-url")}
    assert secret_keys(rendered.pod("users")) == urls | own


def test_no_secret_is_in_a_variable_or_a_config_map() -> None:
    rendered = render("external")
    values = [text for item in rendered.of_kind("Secret").values() for text in item["data"].values()]
    secrets = [base64.b64decode(value).decode() for value in values]

    assert len(secrets) == 6
    for component in SERVICES:
        shown = " ".join(rendered.variables(component).values())
        assert not [secret for secret in secrets if secret in shown]


def test_secrets_of_ones_own_are_mounted_and_none_are_made() -> None:
    rendered = render("ha")

    assert not rendered.of_kind("Secret")
    assert {secret for secret, _ in secret_keys(rendered.pod("users"))} == {"roundhouse-stores", "roundhouse-secrets"}


def test_one_store_of_ones_own_beside_bundled_ones() -> None:
    keys = secret_keys(render("mixed").pod("users"))

    assert {("t-stores", "nats-url"), ("t-stores", "redis-url"), ("database", "database-url")} <= keys


def checksums(values: str, component: str, case: str = "external") -> dict[str, str]:
    annotations = render(case, values).pod(component)["metadata"]["annotations"]
    return {name: text for name, text in annotations.items() if name.startswith("checksum/")}


def test_a_changed_setting_rolls_out_that_service_alone() -> None:
    changed = "services: {users: {settings: {REQUIRE_IF_MATCH: true}}}"

    assert checksums("", "users")["checksum/config"] != checksums(changed, "users")["checksum/config"]
    for other in ("gateway", "realtime", "compute", "health"):
        assert checksums("", other) == checksums(changed, other)


def test_a_changed_secret_rolls_out_those_who_have_it() -> None:
    changed = "external: {databaseUrl: 'postgresql://roundhouse:other@postgres.stores:5433/roundhouse'}"

    for owner in ("users", "health"):
        assert checksums("", owner)["checksum/secrets"] != checksums(changed, owner)["checksum/secrets"]
    for other in ("gateway", "realtime", "compute"):
        assert checksums("", other) == checksums(changed, other)


def test_the_checksum_is_of_the_very_password_that_was_generated() -> None:
    rendered = render()
    data = {key: base64.b64decode(text).decode() for key, text in rendered.one("Secret", "t-stores")["data"].items()}
    made = hashlib.sha256((data["valkey-password"] + data["valkey.conf"]).encode()).hexdigest()

    assert rendered.pod("valkey")["metadata"]["annotations"]["checksum/secrets"] == made
    assert f"requirepass {data['valkey-password']}\n" in data["valkey.conf"]
    assert data["redis-url"] == f"redis://:{data['valkey-password']}@t-valkey:6379/0"


def test_generated_secrets_are_long_and_different() -> None:
    data = {**render().one("Secret", "t-stores")["data"], **render().one("Secret", "t-secrets")["data"]}
    keys = ("nats-password", "valkey-password", "postgres-password", "admin-password", "key-seal")
    secrets = [base64.b64decode(data[key]).decode() for key in keys]

    assert len(set(secrets)) == len(keys)
    assert all(len(secret) >= 24 and secret.isalnum() for secret in secrets)


@CASES
def test_pods_of_a_service_are_spread(case: str) -> None:
    for component, pod in render(case).pods():
        if component in SERVICES and case != "minimal":
            constraints = pod["spec"]["topologySpreadConstraints"]
            assert {item["topologyKey"] for item in constraints} == {
                "kubernetes.io/hostname",
                "topology.kubernetes.io/zone",
            }
            for item in constraints:
                assert item["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == component


def test_selectors_hold_nothing_that_changes_between_versions() -> None:
    rendered = render()
    for kind in ("Deployment", "StatefulSet"):
        for item in rendered.of_kind(kind).values():
            selector = item["spec"]["selector"]["matchLabels"]
            names = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}
            assert set(selector) == names
            assert selector.items() <= item["spec"]["template"]["metadata"]["labels"].items()


def test_an_upgrade_of_the_chart_does_not_restart_the_stores() -> None:
    rendered = render()
    for store in STORES:
        assert not [
            label for label in rendered.pod(store)["metadata"]["labels"] if "version" in label or "chart" in label
        ]
