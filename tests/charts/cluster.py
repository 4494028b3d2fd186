"""A real control plane for the autoscalers, as a program: etcd, API server and controllers, a pretended kubelet, pretended loads.

`python cluster.py FOLDER_OF_THE_HARNESS` with KUBE_ASSETS. It prints JSON lines: first `{"kubeconfig", "up_s"}`, then the pods of every
Deployment whenever they change. It reads JSON lines: `{"component", "metric": "cpu"|"memory"|"requests", "total": number or null}`;
a total is shared by the pods of that component (milli-CPUs, MiB, requests in a second), null means that nobody knows. It ends with
its input.

A program of its own, because the harness is one of those that own their process.
"""

import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

sys.path.insert(0, sys.argv[1])
import harness

COMPONENT = "app.kubernetes.io/component"
METRIC = "http_requests_per_second"
POLL_S = 0.2
START_TIMEOUT_S = 30.0

IDLE = {"cpu": 40.0, "memory": 60.0, "requests": 2.0}
loads: dict[str, dict[str, float | None]] = {}


def load_of(component: str, metric: str, pods: int) -> float | None:
    """Return what one of so many pods has."""
    total = loads.get(component, {}).get(metric, IDLE[metric] * pods)
    return None if total is None else total / max(1, pods)


def chosen(selector: str) -> tuple[str, list[str]]:
    """Return the component that a selector names, and its running pods."""
    labels = dict(part.split("=") for part in selector.split(",") if "=" in part)
    found = [pod for pod in harness.pods() if labels.items() <= pod["metadata"].get("labels", {}).items()]
    names = [pod["metadata"]["name"] for pod in found if pod["status"].get("phase") == "Running"]
    return labels.get(COMPONENT, ""), names


class Metrics(BaseHTTPRequestHandler):
    """metrics.k8s.io and custom.metrics.k8s.io, as far as the autoscaler asks them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, selector = unquote(parts.path), parse_qs(parts.query).get("labelSelector", [""])[0]
        answer = self._answer(path, selector)
        body = json.dumps(answer or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, path: str, selector: str) -> dict[str, Any] | None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if found := re.fullmatch(r"/apis/((?:custom\.)?metrics\.k8s\.io/v1beta1)", path):
            name = f"pods/{METRIC}" if found[1].startswith("custom") else "pods"
            resource = {"name": name, "namespaced": True, "kind": "MetricValueList", "verbs": ["get", "list"]}
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": found[1], "resources": [resource]}
        if path == "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods":
            return self._usage(selector, now)
        if path == f"/apis/custom.metrics.k8s.io/v1beta1/namespaces/default/pods/*/{METRIC}":
            return self._requests(selector, now)
        return None

    def _usage(self, selector: str, now: str) -> dict[str, Any]:
        component, names = chosen(selector)
        cpu, memory = (load_of(component, metric, len(names)) or 0 for metric in ("cpu", "memory"))
        usage = {"cpu": f"{cpu:.0f}m", "memory": f"{memory * 1024:.0f}Ki"}
        items = [
            {"metadata": {"name": name, "namespace": "default"}, "timestamp": now, "window": "1s",
             "containers": [{"name": component, "usage": usage}]} for name in names
        ]  # fmt: skip
        return {"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "items": items}

    def _requests(self, selector: str, now: str) -> dict[str, Any] | None:
        component, names = chosen(selector)
        each = load_of(component, "requests", len(names))
        if each is None:
            return None
        items = [
            {"describedObject": {"kind": "Pod", "namespace": "default", "name": name, "apiVersion": "/v1"},
             "metricName": METRIC, "timestamp": now, "value": f"{each * 1000:.0f}m"} for name in names
        ]  # fmt: skip
        return {"kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta1", "items": items}


def listen(ended: threading.Event) -> None:
    """Take loads from standard input until it ends."""
    for line in sys.stdin:
        order = json.loads(line)
        loads.setdefault(order["component"], {})[order["metric"]] = order["total"]
    ended.set()


def replicas() -> dict[str, int]:
    found = harness.api("GET", "/apis/apps/v1/namespaces/default/deployments")["items"]
    return {item["metadata"]["labels"][COMPONENT]: item["spec"].get("replicas", 1) for item in found}


def patiently(api: Callable[..., Any]) -> Callable[..., Any]:
    """Return the harness's own call, tried again while a new server has not made its first namespace yet."""

    def call(method: str, path: str, *rest: Any) -> Any:
        give_up = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return api(method, path, *rest)
            except RuntimeError as error:
                if 'namespaces \\"default\\" not found' not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(POLL_S)

    return call


def await_metrics() -> None:
    """Return once the API server passes on what the metrics APIs say."""
    give_up = time.monotonic() + START_TIMEOUT_S
    for group in ("metrics.k8s.io", "custom.metrics.k8s.io"):
        while True:
            try:
                harness.api("GET", f"/apis/{group}/v1beta1")
                break
            except RuntimeError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(POLL_S)


def main() -> None:
    harness.M = Metrics
    harness.api = patiently(harness.api)
    ended = threading.Event()
    try:
        up_s = harness.up()
        await_metrics()
        print(json.dumps({"kubeconfig": f"{harness.D}/kc", "up_s": round(up_s, 1)}), flush=True)
        threading.Thread(target=listen, args=(ended,), daemon=True).start()
        last: dict[str, int] = {}
        while not ended.wait(POLL_S):
            now = replicas()
            if now != last:
                print(json.dumps({"at": time.time(), "replicas": now}), flush=True)
                last = now
    finally:
        harness.down()
        shutil.rmtree(harness.D, ignore_errors=True)


if __name__ == "__main__":
    main()
