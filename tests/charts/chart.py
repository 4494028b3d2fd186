"""The chart as Helm renders it: finds the programs, renders, and reads what came out."""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dev.fleet import FLEET

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "roundhouse"
CASES = CHART / "ci"
OWN_TOOLS = ROOT / ".roundhouse" / "tools"
MAKER = ROOT.parent / "shared" / "standins" / "tools"

SERVICES = tuple(sorted(service.name for service in FLEET.services))
RELEASE = "t"
KUBE_VERSION = "1.33.0"
MAKER_TIMEOUT_S = 300
RUN_TIMEOUT_S = 60

Object = dict[str, Any]

READER = """
{{- $found := list }}
{{- range splitList "\\n---\\n" (print "\\n" .Values.text) }}{{ $found = append $found (fromYaml .) }}{{ end }}
{{- dict "apiVersion" "v1" "kind" "List" "items" $found | toJson }}
"""
"""Helm reads YAML for us as it reads values, so that the tests need no reader of their own."""


class HelmRefused(Exception):
    """Helm said no; the text is what it said."""


@functools.cache
def tool(name: str) -> Path:
    """Return a program by name: from ROUNDHOUSE_TOOLS, from PATH, or made into a cache where a maker of tools lies beside us."""
    folders = [Path(os.environ["ROUNDHOUSE_TOOLS"])] if "ROUNDHOUSE_TOOLS" in os.environ else []
    if MAKER.exists():
        _make_tools()
        folders.append(OWN_TOOLS)
    for folder in folders:
        for place in (folder / "bin" / name, folder / "venv" / "bin" / name):
            if os.access(place, os.X_OK):
                return place
    if found := shutil.which(name):
        return Path(found)
    pytest.skip(f"{name} is neither on PATH nor in $ROUNDHOUSE_TOOLS/bin")


@functools.cache
def _make_tools() -> None:
    OWN_TOOLS.parent.mkdir(mode=0o700, exist_ok=True)
    subprocess.run([MAKER, OWN_TOOLS], check=True, capture_output=True, timeout=MAKER_TIMEOUT_S)


def run_helm(*arguments: str, stdin: str | None = None) -> str:
    """Run Helm and return what it printed. Raises HelmRefused."""
    command = [str(tool("helm")), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    if done.returncode:
        raise HelmRefused(done.stderr.strip())
    return done.stdout


def case_names() -> list[str]:
    """Return the names of the value files that every check is made with, the defaults first."""
    return ["", *sorted(path.name.removesuffix("-values.yaml") for path in CASES.glob("*-values.yaml"))]


@functools.cache
def template(case: str = "", kube_version: str = KUBE_VERSION, values: str = "", release: str = RELEASE) -> str:
    """Return the rendered text of a case; `values` is YAML that goes over it. Raises HelmRefused."""
    files = ["-f", str(CASES / f"{case}-values.yaml")] if case else []
    more = ["-f", "-"] if values else []
    command = ["template", release, str(CHART), "--kube-version", kube_version, *files, *more]
    return run_helm(*command, stdin=values or None)


@functools.cache
def _reader() -> Path:
    folder = OWN_TOOLS / "reader"
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: reader\nversion: 0.0.0\n")
    (folder / "templates" / "read.yaml").write_text(READER)
    return folder


def read_yaml(text: str) -> list[Object]:
    """Return the documents of a YAML text, without empty ones."""
    printed = run_helm("template", "reader", str(_reader()), "--set-file", "text=/dev/stdin", stdin=text)
    (line,) = (line for line in printed.splitlines() if line.startswith("{"))
    documents: list[Object] = [document for document in json.loads(line)["items"] if document]
    assert not [document for document in documents if set(document) == {"Error"}], documents
    return documents


@dataclass(frozen=True, slots=True)
class Rendered:
    """The objects of one rendering."""

    objects: Sequence[Object] = field(repr=False)

    def of_kind(self, kind: str) -> dict[str, Object]:
        """Return the objects of a kind by name."""
        return {item["metadata"]["name"]: item for item in self.objects if item["kind"] == kind}

    def one(self, kind: str, name: str) -> Object:
        return self.of_kind(kind)[name]

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Yield component and pod template of every workload."""
        for item in self.objects:
            if item["kind"] in ("Deployment", "StatefulSet"):
                yield item["metadata"]["labels"]["app.kubernetes.io/component"], item["spec"]["template"]

    def pod(self, component: str) -> Object:
        return dict(self.pods())[component]

    def variables(self, component: str) -> dict[str, str]:
        """Return the environment of a service's container, values from elsewhere as the name of their place."""
        (container,) = self.pod(component)["spec"]["containers"]
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            found |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        for item in container.get("env", ()):
            found[item["name"]] = item.get("value") or json.dumps(item["valueFrom"], sort_keys=True)
        return found


@functools.cache
def render(case: str = "", values: str = "", release: str = RELEASE) -> Rendered:
    """Return the objects of a case; `values` is YAML that goes over it. Raises HelmRefused."""
    return Rendered(read_yaml(template(case, values=values, release=release)))
