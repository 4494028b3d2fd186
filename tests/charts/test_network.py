"""Who reaches whom: the Services' names and ports, and policies that let through exactly what the fleet needs."""

import pytest

from dev.fleet import FLEET
from tests.charts.chart import SERVICES, HelmRefused, Object, Rendered, render

STORE_PORTS = {"nats": 4222, "valkey": 6379, "postgres": 5432}
NEEDS = {service.name: set(service.needs) for service in FLEET.services}
# Public keys come from users; the gateway and health know everybody; whoever is new verifies tokens.
CALLS = {name: {"users"} - {name} for name in SERVICES} | {
    name: set(SERVICES) - {name} for name in ("gateway", "health")
}


def components(peers: list[Object]) -> set[str]:
    """Return the components that peers select, other peers as `elsewhere`."""
    labels = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in peers]
    return {item.get("app.kubernetes.io/component", "elsewhere") for item in labels}


def allowed(rendered: Rendered) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return the pairs (from, to) that egress rules let out, and those that ingress rules let in."""
    out, into = set(), set()
    for policy in rendered.of_kind("NetworkPolicy").values():
        name = policy["metadata"]["labels"]["app.kubernetes.io/component"]
        for rule in policy["spec"]["egress"]:
            out |= {(name, other) for other in components(rule.get("to", []))}
        for rule in policy["spec"]["ingress"]:
            into |= {(other, name) for other in components(rule.get("from", []))}
    return out, into


def test_the_policies_let_through_what_is_needed_and_nothing_else() -> None:
    out, into = allowed(render())
    wanted = {(name, other) for name, others in CALLS.items() for other in others}
    wanted |= {(name, store) for name, stores in NEEDS.items() for store in stores}

    assert out == wanted
    assert into == wanted | {("elsewhere", name) for name in SERVICES}


def test_every_pod_is_denied_both_ways_by_default() -> None:
    rendered = render()
    policies = {
        policy["metadata"]["labels"]["app.kubernetes.io/component"]: policy["spec"]
        for policy in rendered.of_kind("NetworkPolicy").values()
    }
    for component, pod in rendered.pods():
        spec = policies[component]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        # A rule without peers means everybody: only the port for clients may be that.
        open_rules = [rule for rule in spec["ingress"] if not rule.get("from")]
        assert open_rules == ([{"ports": [{"port": "public", "protocol": "TCP"}]}] if component == "gateway" else [])
        assert all(rule["ports"] for rule in [*spec["ingress"], *spec["egress"]])


def test_the_ports_of_policies_and_services_are_those_of_the_pods() -> None:
    rendered = render()
    ports = {
        component: {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        for component, pod in rendered.pods()
    }
    for service in rendered.of_kind("Service").values():
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports[service["spec"]["selector"]["app.kubernetes.io/component"]]
    for policy in rendered.of_kind("NetworkPolicy").values():
        own = ports[policy["metadata"]["labels"]["app.kubernetes.io/component"]]
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= set(own)
    assert {store: ports[store][store] for store in STORE_PORTS} == STORE_PORTS


def test_callers_find_every_replica_by_headless_services() -> None:
    rendered = render(release="prod")
    services = rendered.of_kind("Service")
    for component in SERVICES:
        text = rendered.variables(component)[f"RH_{component.upper()}_ENDPOINTS"]
        found = dict(item.split("=") for item in text.split(",") if item)
        assert set(found) == CALLS[component]
        for name, address in found.items():
            host, _, port = address.partition(":")
            assert services[host]["spec"]["clusterIP"] == "None"
            assert services[host]["spec"]["selector"]["app.kubernetes.io/component"] == name
            assert int(port) == 8000 == services[host]["spec"]["ports"][0]["port"]
            assert host.startswith("prod-")


def test_clients_reach_the_gateway_by_one_address() -> None:
    service = render().one("Service", "t-gateway")

    assert service["spec"]["type"] == "ClusterIP"
    assert "clusterIP" not in service["spec"]
    assert service["spec"]["ports"] == [{"name": "public", "port": 80, "targetPort": "public", "protocol": "TCP"}]


def test_the_ingress_leads_to_the_clients_port_alone() -> None:
    (ingress,) = render("ha").of_kind("Ingress").values()

    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "api.example.com"
    assert rule["http"]["paths"][0]["backend"] == {"service": {"name": "t-gateway", "port": {"name": "public"}}}
    assert ingress["spec"]["tls"] == [{"hosts": ["api.example.com"], "secretName": "api-tls"}]


def test_only_the_ingress_controller_reaches_the_gateway_where_that_is_said() -> None:
    policy = render("ha").one("NetworkPolicy", "t-gateway")

    (rule,) = (rule for rule in policy["spec"]["ingress"] if rule["ports"][0]["port"] == "public")
    assert rule["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ingress-nginx"}


def test_stores_of_ones_own_are_reached_by_their_ports() -> None:
    policy = render("external").one("NetworkPolicy", "t-users")

    ports = {port["port"] for rule in policy["spec"]["egress"] if "to" not in rule for port in rule["ports"]}
    assert ports == {53, 4222, 6380, 5433}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("ingress: {enabled: true}", "ingress.hosts is empty"),
        (
            "ingress: {enabled: true, hosts: [a.example.com]}\nservices: {gateway: {enabled: false}}",
            "ingress.enabled needs services.gateway.enabled",
        ),
        ("services: {gateway: {port: 8080}}", r"services\.gateway\.port and publicPort are both 8080"),
    ],
)
def test_ways_that_lead_nowhere_are_refused(values: str, said: str) -> None:
    with pytest.raises(HelmRefused, match=said):
        render(values=values)
