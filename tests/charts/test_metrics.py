"""What an autoscaler asks for exists: the rule for prometheus-adapter, its query, and the series of a real service."""

import re
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from prometheus_client.parser import text_string_to_metric_families

from dev.fleet import FLEET
from shared.app import Opened, Runtime, build
from shared.settings import Settings
from tests.charts.chart import CHART, RUN_TIMEOUT_S, case_names, read_yaml, render, tool

RULES = CHART / "files" / "prometheus-adapter-rules.yaml"


def rule() -> dict[str, Any]:
    (document,) = read_yaml(RULES.read_text())
    (found,) = document["rules"]["custom"]
    return found


def query(namespace: str = "prod") -> str:
    """Return the rule's query as prometheus-adapter asks it for all pods of a namespace."""
    text: str = rule()["metricsQuery"]
    filled = {"Series": "requests_total", "LabelMatchers": f'namespace="{namespace}",pod=~"a|b"', "GroupBy": "pod"}
    for name, value in filled.items():
        text = text.replace(f"<<.{name}>>", value)
    assert "<<" not in text
    return text


@pytest.mark.parametrize("case", case_names(), ids=lambda name: name or "defaults")
def test_every_custom_metric_is_one_that_the_rules_make(case: str) -> None:
    made = rule()["name"]["as"]
    for autoscaler in render(case).of_kind("HorizontalPodAutoscaler").values():
        asked = {
            metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"] if metric["type"] == "Pods"
        }
        assert asked <= {made}


async def scrape() -> tuple[dict[str, set[str]], set[str]]:
    """Return the label names of each series that a service exports after a request, and the routes of its requests."""

    async def ping() -> dict[str, str]:
        return {}

    @asynccontextmanager
    async def resources(_: Settings, __: Runtime) -> Any:
        yield Opened(None)

    router = APIRouter()
    router.add_api_route("/ping", ping)
    app = build(Settings(), routers=[router], resources=resources, title="Scraped")
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://pod") as client:
        for path in ("/live", "/ready", "/ping", "/metrics"):
            (await client.get(path)).raise_for_status()
        text = (await client.get("/metrics")).text
    series: dict[str, set[str]] = {}
    routes = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
            if sample.name == "requests_total":
                routes.add(sample.labels["route"])
    return series, routes


async def test_the_rule_reads_series_and_labels_that_a_real_service_exports() -> None:
    series, _ = await scrape()
    wanted = re.match(r"(\w+)\{", rule()["seriesQuery"])

    assert wanted
    assert wanted[1] in series
    assert re.fullmatch(rule()["name"]["matches"], wanted[1])
    # The others come from Prometheus's own discovery of pods.
    asked = set(re.findall(r"(\w+)[!=]~?\"", rule()["metricsQuery"])) | set(rule()["resources"]["overrides"])
    assert asked - {"namespace", "pod"} <= series[wanted[1]]


async def test_the_rule_leaves_out_exactly_the_probes() -> None:
    _, routes = await scrape()
    left_out = re.search(r'route!~"([^"]+)"', rule()["metricsQuery"])

    assert left_out
    assert {route for route in routes if not re.fullmatch(left_out[1], route)} == {"/ping"}


def test_the_query_counts_a_pods_requests_in_a_second_without_probes(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        f"groups: [{{name: g, rules: [{{record: http_requests_per_second, expr: '{query()}'}}]}}]\n"
    )
    (tmp_path / "test.yaml").write_text(
        """
rule_files: [rules.yaml]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - {series: 'requests_total{namespace="prod",pod="a",route="/users/{user_id}",status="200"}', values: '0+150x40'}
      - {series: 'requests_total{namespace="prod",pod="a",route="/auth/token",status="401"}', values: '0+30x40'}
      - {series: 'requests_total{namespace="prod",pod="a",route="/ready",status="200"}', values: '0+15x40'}
      - {series: 'requests_total{namespace="prod",pod="b",route="/metrics",status="200"}', values: '0+15x40'}
      - {series: 'requests_total{namespace="prod",pod="b",route="/users",status="200"}', values: '0+0x40'}
      - {series: 'requests_total{namespace="else",pod="a",route="/users",status="200"}', values: '0+999x40'}
    promql_expr_test:
      - expr: http_requests_per_second
        eval_time: 5m
        exp_samples:
          - {labels: 'http_requests_per_second{pod="a"}', value: 12}
          - {labels: 'http_requests_per_second{pod="b"}', value: 0}
"""
    )
    command = [tool("promtool"), "test", "rules", tmp_path / "test.yaml"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_pod_says_where_to_scrape_it() -> None:
    rendered = render()
    for service in FLEET.services:
        pod = rendered.pod(service.name)
        annotations = pod["metadata"]["annotations"]
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        assert annotations["prometheus.io/port"] == str(ports["http"])
        assert annotations["prometheus.io/path"] == "/metrics"
