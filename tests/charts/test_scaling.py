"""Each service scales alone: its autoscaler, its disruption budget, its number of pods."""

import pytest

from tests.charts.chart import SERVICES, HelmRefused, Object, case_names, render


def targets(autoscaler: Object) -> dict[str, str | int]:
    """Return metric and target of an autoscaler."""
    found: dict[str, str | int] = {}
    for metric in autoscaler["spec"]["metrics"]:
        if metric["type"] == "Resource":
            found[metric["resource"]["name"]] = metric["resource"]["target"]["averageUtilization"]
        else:
            found[metric["pods"]["metric"]["name"]] = metric["pods"]["target"]["averageValue"]
    return found


def test_every_service_has_its_own_autoscaler() -> None:
    rendered = render()
    autoscalers = rendered.of_kind("HorizontalPodAutoscaler")

    assert sorted(autoscalers) == [f"t-{name}" for name in SERVICES]
    for name, autoscaler in autoscalers.items():
        spec, found = autoscaler["spec"], targets(autoscaler)
        assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
        assert (found["cpu"], found["memory"]) == (70, 80)
        assert int(found["http_requests_per_second"]) > 0


def test_up_fast_and_down_slowly() -> None:
    for autoscaler in render().of_kind("HorizontalPodAutoscaler").values():
        up, down = (autoscaler["spec"]["behavior"][way] for way in ("scaleUp", "scaleDown"))
        assert up["stabilizationWindowSeconds"] == 0
        assert {policy["type"]: policy["value"] for policy in up["policies"]} == {"Percent": 100, "Pods": 4}
        assert down["stabilizationWindowSeconds"] >= 300
        assert all(policy["value"] <= 25 and policy["periodSeconds"] >= 60 for policy in down["policies"])


@pytest.mark.parametrize("case", case_names(), ids=lambda name: name or "defaults")
def test_replicas_are_said_by_one_only(case: str) -> None:
    rendered = render(case)
    scaled = rendered.of_kind("HorizontalPodAutoscaler")
    for name, deployment in rendered.of_kind("Deployment").items():
        assert ("replicas" in deployment["spec"]) != (name in scaled), name


def test_one_service_is_tuned_or_switched_off_alone() -> None:
    rendered = render("tuned")
    autoscalers = rendered.of_kind("HorizontalPodAutoscaler")

    off = {"realtime", "health", "compute"}
    assert sorted(autoscalers) == [f"rh-{name}" for name in SERVICES if name not in off]
    assert targets(autoscalers["rh-users"]) == {"cpu": 60}
    assert autoscalers["rh-users"]["spec"]["maxReplicas"] == 4
    assert targets(autoscalers["rh-gateway"]) == {"cpu": 70, "memory": 80, "http_requests_per_second": "300"}
    assert rendered.one("Deployment", "rh-realtime")["spec"]["replicas"] == 4


def test_a_budget_only_where_a_pod_can_be_spared() -> None:
    assert sorted(render().of_kind("PodDisruptionBudget")) == [f"t-{name}" for name in SERVICES]
    alone = {"health", "compute"}
    tuned = render("tuned").of_kind("PodDisruptionBudget")
    assert sorted(tuned) == [f"rh-{name}" for name in SERVICES if name not in alone]
    for budget in render().of_kind("PodDisruptionBudget").values():
        assert budget["spec"]["maxUnavailable"] == 1


def test_a_roll_out_is_never_short_of_a_pod() -> None:
    for deployment in render().of_kind("Deployment").values():
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            "services: {users: {autoscaling: {min: 5, max: 4}}}",
            r"services\.users\.autoscaling\.min is 5, which is above max 4",
        ),
        ("defaults: {autoscaling: {min: 11}}", r"min is 11, which is above max 10: lower min or raise max"),
        (
            "services: {users: {autoscaling: {cpuPercent: 0, memoryPercent: 0, requestsPerSecond: 0}}}",
            r"services\.users\.autoscaling looks at nothing",
        ),
        ("defaults: {resources: {requests: {cpu: null}}}", r"resources\.requests\.cpu, which is missing"),
        ("services: {users: {resources: {requests: {memory: 0}}}}", r"resources\.requests\.memory, which is missing"),
    ],
)
def test_an_autoscaler_that_cannot_work_is_refused(values: str, said: str) -> None:
    with pytest.raises(HelmRefused, match=said):
        render(values=values)
