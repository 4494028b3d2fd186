"""Every set of values renders, is clean to the linter, and is what each version of Kubernetes knows."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.charts.chart import (
    CASES,
    CHART,
    KUBE_VERSION,
    RUN_TIMEOUT_S,
    SERVICES,
    case_names,
    read_yaml,
    render,
    run_helm,
    template,
    tool,
)

KUBE_VERSIONS = ("1.30.0", "1.33.0", "1.37.0")

_SECRET_TEXT = re.compile(
    r"^( *(?:checksum/\w+|[a-z.-]+-(?:url|password|seal)|(?:nats|valkey)\.conf):) .*$", re.MULTILINE
)
"""What is random or follows from it."""

TOGGLES = (
    "scrapeAnnotations: false",
    "networkPolicy: {enabled: false}",
    "bundled: {valkey: {enabled: false}}\nexternal: {redisUrl: 'redis://cache:6379/0'}",
    "bundled: {nats: {enabled: false}}\nexternal: {natsUrl: 'nats://bus:4222'}",
    "ingress: {enabled: true, hosts: [a.example.com, b.example.com]}",
    "defaults: {autoscaling: {enabled: false}}",
    "defaults: {podDisruptionBudget: {enabled: false}}",
    "defaults: {drain: {preStopS: 0}}",
    "defaults: {image: {digest: 'sha256:" + "0" * 64 + "'}}",
    *(f"services: {{{name}: {{enabled: false}}}}" for name in SERVICES),
)


@pytest.mark.parametrize("case", case_names(), ids=lambda name: name or "defaults")
def test_the_linter_finds_nothing(case: str) -> None:
    run_helm("lint", "--strict", str(CHART), *(["-f", str(CASES / f"{case}-values.yaml")] if case else []))


@pytest.mark.parametrize("version", KUBE_VERSIONS)
def test_every_case_is_valid_for_every_version(version: str, tmp_path: Path) -> None:
    validate([template(case, version) for case in case_names()], version, tmp_path)


def test_every_toggle_is_valid(tmp_path: Path) -> None:
    validate([template(values=values) for values in TOGGLES], KUBE_VERSION, tmp_path)


def validate(texts: Sequence[str], version: str, folder: Path) -> None:
    """Hold rendered texts to the strict schemas of a version."""
    # Most of a rendering is the same as in another, and the validator takes its time.
    objects = {_SECRET_TEXT.sub(r"\1 x", text) for whole in texts for text in whole.split("\n---\n") if "kind:" in text}
    assert len(objects) > 60
    file = folder / "objects.yaml"
    file.write_text("\n---\n".join(sorted(objects)))
    command = [tool("kubernetes-validate"), "--strict", "-k", version.removesuffix(".0"), file]

    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)

    told = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 0, "\n".join(line for line in told if "passed" not in line)
    assert sum("passed" in line for line in told) == len(objects)


def test_an_older_cluster_is_refused() -> None:
    with pytest.raises(Exception, match=r"kubeVersion: >=1\.30"):
        template(kube_version="1.29.0")


def test_no_object_is_there_twice() -> None:
    for case in case_names():
        names = [(item["kind"], item["metadata"]["name"]) for item in render(case).objects]
        assert len(names) == len(set(names))


def test_a_service_left_out_leaves_nothing_behind() -> None:
    rendered = render(values="services: {compute: {enabled: false}}")

    assert not [item for item in rendered.objects if "compute" in item["metadata"]["name"]]
    assert "compute" not in rendered.variables("gateway")["RH_GATEWAY_ENDPOINTS"]
    expected = [name for name in SERVICES if name not in ("compute", "health")]
    assert rendered.variables("health")["RH_HEALTH_SERVICES"] == ",".join(expected)


def test_the_notes_say_how_to_reach_it_and_what_is_missing() -> None:
    # Only an installation prints notes; a dry one by the client asks no cluster.
    told = run_helm("install", "t", str(CHART), "--dry-run=client")
    notes = " ".join(told.partition("NOTES:")[2].split())

    assert "port-forward service/t-gateway 8080:80" in notes
    assert "get secret t-secrets" in notes
    assert "nats, postgres, valkey run as single servers" in notes
    assert "no custom metrics API" in notes


def test_extra_objects_may_hold_templates() -> None:
    assert render("tuned").one("ConfigMap", "t-extra")["data"] == {"greeting": "hello"}


def test_the_reader_reads_what_helm_reads() -> None:
    assert read_yaml("a: 1\n---\n# nothing\n---\nb: [x, {c: 2}]\n") == [{"a": 1}, {"b": ["x", {"c": 2}]}]
