"""CPUs from cgroups of both versions, as files in a folder of the test."""

import os
from pathlib import Path

import pytest

from services.compute.pool.cpus import usable_cpus

MANY = 10**6


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)


def cpus(tmp_path: Path, membership: str, files: dict[str, str]) -> int:
    (tmp_path / "self").write_text(membership)
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return usable_cpus(cgroups=tmp_path / "cgroup", membership=tmp_path / "self")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", 64),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("9900000 100000", 64),
    ],
)
def test_version_2_quota(tmp_path: Path, content: str, expected: int) -> None:
    assert cpus(tmp_path, "0::/\n", {"cpu.max": content}) == expected


def test_version_2_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "max 100000"}
    assert cpus(tmp_path, "0::/a/b\n", files) == 3


def test_version_2_path_of_the_host_inside_a_container(tmp_path: Path) -> None:
    assert cpus(tmp_path, "0::/kubepods/pod1/abc\n", {"cpu.max": "400000 100000"}) == 4


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("150000", 1), ("800000", 8)])
def test_version_1_quota(tmp_path: Path, quota: str, expected: int) -> None:
    files = {"cpu,cpuacct/x/cpu.cfs_quota_us": quota, "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}
    assert cpus(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/x\n0::/\n", files) == expected


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(cgroups=tmp_path / "no", membership=tmp_path / "no") == 64
