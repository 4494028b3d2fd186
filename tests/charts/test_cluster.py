"""The chart's own objects on a real control plane: installed and upgraded by Helm, scaled by the real autoscaler.

Needs KUBE_ASSETS, a folder with etcd, kube-apiserver and kube-controller-manager 1.20; a copy of the chart gets
its older API versions.
`ROUNDHOUSE_RENEW_TRANSCRIPT=1` writes docs/hpa-transcript.md.
"""

import json
import math
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.charts.chart import CHART, ROOT, SERVICES, render, tool

HARNESS = ROOT.parent / "shared" / "standins" / "hpa"
TRANSCRIPT = ROOT / "docs" / "hpa-transcript.md"
START_TIMEOUT_S = 60
STEP_TIMEOUT_S = 120

# The windows are shortened, or one run would take an hour; everything else is the chart's default.
VALUES = """
defaults:
  drain: {preStopS: 0}
  autoscaling: &short
    scaleUp:
      policies:
        - {type: Percent, value: 100, periodSeconds: 1}
        - {type: Pods, value: 4, periodSeconds: 1}
    scaleDown:
      stabilizationWindowSeconds: 4
      policies: [{type: Percent, value: 50, periodSeconds: 2}]
services:
  realtime: {autoscaling: *short}
"""

AS_1_20 = ("--server-side=false", "--disable-openapi-validation")
"""That server leaves out fields that are newer than itself, where it is not asked to be strict."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Cluster:
    """The control plane: a program beside us, `kubectl` and `helm` on it, and what was seen."""

    process: subprocess.Popen[str]
    lines: "queue.Queue[dict[str, Any]]"
    kubeconfig: str = ""
    up_s: float = 0.0
    replicas: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    seen: list[tuple[float, str]] = field(default_factory=list)

    def load(self, component: str, metric: str, total: float | None) -> None:
        """Share a total among the pods of a component; None: nobody knows it."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"component": component, "metric": metric, "total": total}) + "\n")
        self.process.stdin.flush()
        units = {"cpu": "m CPU", "memory": " MiB", "requests": " requests/s"}
        self.note(
            f"load: {component} has {total:g}{units[metric]}"
            if total is not None
            else f"load: {component}'s {metric} are unknown"
        )

    def note(self, text: str) -> None:
        self.seen.append((time.time() - self.began, text))

    def wait_for(self, what: str, is_reached: Callable[[dict[str, int]], bool]) -> None:
        """Read what the control plane says until the numbers of pods are as awaited."""
        give_up = time.monotonic() + STEP_TIMEOUT_S
        while not is_reached(self.replicas):
            try:
                line = self.lines.get(timeout=max(0.0, give_up - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no {what} within {STEP_TIMEOUT_S} s: {self.replicas}\n{self.told()}")
            assert "replicas" in line, f"the control plane ended\n{self.told()}"
            changed = {name: count for name, count in line["replicas"].items() if self.replicas.get(name) != count}
            before = [f"{name} {self.replicas.get(name, 0)} -> {count}" for name, count in sorted(changed.items())]
            self.replicas = line["replicas"]
            self.seen.append((line["at"] - self.began, "pods: " + ", ".join(before)))

    def told(self) -> str:
        return "\n".join(f"{at:6.1f} s  {text}" for at, text in sorted(self.seen, key=lambda item: item[0]))

    def helm(self, *arguments: str) -> str:
        return self._run("helm", *arguments)

    def get(self, *arguments: str) -> Any:
        return json.loads(self._run("kubectl", "get", *arguments, "-o", "json"))

    def _run(self, name: str, *arguments: str) -> str:
        env = {**os.environ, "KUBECONFIG": self.kubeconfig}
        done = subprocess.run(
            [tool(name), *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def pump(process: subprocess.Popen[str], lines: "queue.Queue[dict[str, Any]]") -> None:
    assert process.stdout
    for line in process.stdout:
        lines.put(json.loads(line))
    lines.put({"ended": True})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if "KUBE_ASSETS" not in os.environ:
        pytest.skip("KUBE_ASSETS names no folder with etcd, kube-apiserver and kube-controller-manager")
    if not HARNESS.exists():
        pytest.skip("there is no harness for a control plane beside this repository")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("cluster.py")), str(HARNESS)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    lines: queue.Queue[dict[str, Any]] = queue.Queue(maxsize=10_000)
    reader = threading.Thread(target=pump, args=(process, lines))
    reader.start()
    try:
        first = lines.get(timeout=START_TIMEOUT_S)
        assert "kubeconfig" in first, "the control plane did not start"
        yield Cluster(process, lines, kubeconfig=first["kubeconfig"], up_s=first["up_s"])
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        assert process.stdout
        process.stdout.close()


@pytest.fixture(scope="module")
def old_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the chart in the words of Kubernetes 1.20: older API versions, and no cluster is too old."""
    copy = tmp_path_factory.mktemp("chart") / "roundhouse"
    shutil.copytree(CHART, copy)
    words = {"autoscaling/v2": "autoscaling/v2beta2", "policy/v1": "policy/v1beta1"}
    for file in (copy / "templates").iterdir():
        text = file.read_text()
        for new, old in words.items():
            text = re.sub(rf"^apiVersion: {new}$", f"apiVersion: {old}", text, flags=re.MULTILINE)
        file.write_text(text)
    manifest = copy / "Chart.yaml"
    manifest.write_text(
        re.sub(r"^kubeVersion: .*$", 'kubeVersion: ">=1.20.0-0"', manifest.read_text(), flags=re.MULTILINE)
    )
    values = copy / "short.yaml"
    values.write_text(VALUES)
    return copy


@pytest.fixture(scope="module")
def installed(cluster: Cluster, old_chart: Path) -> Cluster:
    cluster.began = time.time()
    cluster.helm("install", "t", str(old_chart), "-f", str(old_chart / "short.yaml"), *AS_1_20)
    cluster.note("helm install")
    cluster.wait_for("minimum", lambda now: len(now) == len(SERVICES) and set(now.values()) == {2})
    return cluster


def secrets(cluster: Cluster) -> dict[str, Any]:
    return {
        item["metadata"]["name"]: item["data"] for item in cluster.get("secrets")["items"] if item["type"] == "Opaque"
    }


def target(component: str, metric: str) -> float:
    """Return what one pod of a component may have, by the chart's own values."""
    rendered = render()
    requests = rendered.pod(component)["spec"]["containers"][0]["resources"]["requests"]
    for item in rendered.one("HorizontalPodAutoscaler", f"t-{component}")["spec"]["metrics"]:
        if metric == "requests" and item["type"] == "Pods":
            return float(item["pods"]["target"]["averageValue"])
        if item["type"] == "Resource" and item["resource"]["name"] == metric:
            amount = float(re.sub(r"m$|Mi$", "", requests[metric]))
            return amount * item["resource"]["target"]["averageUtilization"] / 100
    raise AssertionError(f"{component} does not look at {metric}")


def wanted(component: str, metric: str, total: float) -> int:
    """The formula: as many pods as bring each to its target, within the bounds."""
    return min(10, max(2, math.ceil(total / target(component, metric))))


def test_services_scale_alone_and_as_the_formula_says(installed: Cluster, old_chart: Path) -> None:
    cluster = installed
    loads = {
        "users": ("requests", 750.0),
        "compute": ("cpu", 2400.0),
        "gateway": ("memory", 640.0),
        "realtime": ("requests", 5000.0),
    }
    expected = {name: wanted(name, metric, total) for name, (metric, total) in loads.items()}
    assert expected == {"users": 8, "compute": 7, "gateway": 5, "realtime": 10}
    # Whoever has no load is left alone.
    expected |= {name: 2 for name in SERVICES if name not in loads}

    for name, (metric, total) in loads.items():
        cluster.load(name, metric, total)
        cluster.wait_for(f"{expected[name]} pods of {name}", lambda now, name=name: now[name] == expected[name])
    assert cluster.replicas == expected

    before = secrets(cluster)
    cluster.helm(
        "upgrade", "t", str(old_chart), "-f", str(old_chart / "short.yaml"), *AS_1_20,
        "--set", "services.users.settings.REQUIRE_IF_MATCH=true",
    )  # fmt: skip
    cluster.note("helm upgrade, a setting of users changed")
    # Generated secrets are read back, and what the autoscalers decided is left alone.
    assert secrets(cluster) == before
    now = {item["metadata"]["name"]: item["spec"]["replicas"] for item in cluster.get("deployments")["items"]}
    assert now == {f"t-{name}": count for name, count in expected.items()}

    for name, (metric, _) in loads.items():
        cluster.load(name, metric, 10.0)
    cluster.wait_for("way back to the minimum", lambda now: set(now.values()) == {2})
    highest = dict(expected)
    for _, text in sorted(cluster.seen, key=lambda item: item[0]):
        for name, was, becomes in re.findall(r"(\w+) (\d+) -> (\d+)", text):
            # Down by half at most, as the policy says.
            assert int(becomes) >= int(was) // 2
            assert int(becomes) <= highest[name]


def test_an_unknown_metric_does_not_block_the_way_up(installed: Cluster) -> None:
    cluster = installed
    cluster.load("health", "requests", None)
    cluster.load("health", "cpu", 420.0)
    up = wanted("health", "cpu", 420.0)
    assert up == 6
    cluster.wait_for(f"{up} pods of health", lambda now: now["health"] == up)

    # The way down with an unknown metric is left out: that was made to wait in releases newer than this one.
    cluster.load("health", "requests", 5.0)
    cluster.load("health", "cpu", 10.0)
    cluster.wait_for("way back to the minimum", lambda now: now["health"] == 2)


def test_uninstalling_keeps_what_opens_the_volumes(installed: Cluster) -> None:
    before = secrets(installed)
    assert set(before) == {"t-secrets", "t-stores"}

    installed.helm("uninstall", "t")
    installed.note("helm uninstall")

    assert secrets(installed) == before
    assert installed.get("deployments")["items"] == []
    if os.environ.get("ROUNDHOUSE_RENEW_TRANSCRIPT"):
        write_transcript(installed)


def write_transcript(cluster: Cluster) -> None:
    assets = Path(os.environ["KUBE_ASSETS"])
    server = subprocess.run([assets / "kube-apiserver", "--version"], capture_output=True, text=True, check=True)
    helm = subprocess.run([tool("helm"), "version", "--short"], capture_output=True, text=True, check=True)
    chart = re.search(r"^version: (.*)$", (CHART / "Chart.yaml").read_text(), flags=re.MULTILINE)
    assert chart
    text = f"""# The autoscalers on a real control plane

Written on {datetime.now(UTC):%d %B %Y} by
`ROUNDHOUSE_RENEW_TRANSCRIPT=1 KUBE_ASSETS=... python -m pytest tests/charts/test_cluster.py`.

- Chart {chart[1]}, Helm {helm.stdout.strip()}, {server.stdout.strip()} (API server and controllers; up in {cluster.up_s} s).
- Real: the chart's objects, the API server, the deployment and autoscaling controllers, Helm. Pretended: the kubelet, which
  calls every pod ready, and the metrics APIs, which share a given load among a component's pods.
- Changed for this run: the windows (up 100 % or 4 pods a second; down by half every 2 s after 4 s), `preStop`, and the API versions
  that 1.20 has (`autoscaling/v2beta2`, `policy/v1beta1`); it ignores the few fields that are newer than itself.
- Not seen here: newer controllers do not scale down while a metric is unknown; 1.20 does not wait.

Pods wanted are `ceil(load / target)` between 2 and 10, the largest over the metrics:

| load | target of one pod | pods |
|---|---|---|
| users 750 requests/s | 100 requests/s | ceil(7.5) = 8 |
| compute 2400m CPU | 70 % of 500m = 350m | ceil(6.9) = 7 |
| gateway 640 MiB | 80 % of 160 MiB = 128 MiB | 5 |
| realtime 5000 requests/s | 100 requests/s | 50, bounded by 10 |
| health 420m CPU, requests unknown | 70 % of 100m = 70m | 6 |

```
{cluster.told()}
```
"""
    TRANSCRIPT.write_text(text)
