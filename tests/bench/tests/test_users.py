"""The benchmark `users`: its load, its arithmetic and its table."""

import asyncio
import json
import shutil
import subprocess
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI

from shared.app import Application, Runtime
from tests.bench import outages, people, results, users
from tests.bench.errors import BenchError
from tests.bench.people import ROWS, Stage
from tests.bench.people_load import Driver, Window
from tests.bench.processes import stand
from tests.bench.watched import PATH, Watch


def window(row: str, kind: str, number: int, per_core_s: float) -> Window:
    return Window(row, number, kind, 100, 50.0, 1e6 / per_core_s, per_core_s, 0.9, 1.0, 2.0, 80.0)


def windows():
    return [
        *(window("ours", "read", number, rate) for number, rate in enumerate((900, 1000, 5000))),
        *(window("fastify", "read", number, rate) for number, rate in enumerate((2000, 100, 4000))),
        window("fastify-cache", "read", 0, 10000),
        window("ours", "cached-read", 0, 3000),
    ]


def test_ratios_are_of_medians_ours_over_theirs():
    found = users._ratios(users._medians(windows()))
    assert found == {
        "read_vs_fastify": 0.5,
        "cached_vs_uncached": 3.0,
        "cached_read_vs_fastify": 1.5,
        "read_vs_fastify_cache": 0.1,
        "cached_read_vs_fastify_cache": 0.3,
    }


def test_the_table_shows_rates_by_core_and_what_is_missing():
    raw = {
        "titles": {row.name: row.title for row in ROWS},
        "skipped": {"drf": "not here"},
        "medians": users._medians(windows()),
        "outages": {},
    }
    found = users.table({**results.assemble("users", {"cpu": "c", "cores": 2, "python": "3"}, raw, {})})
    assert "| fastify, postgres.js | 2,000 | - | - | - | 80 |" in found
    assert "1,000 | - | - | 3,000 | 80 |" in found
    assert "Left out: drf: not here" in found


def test_what_the_outages_showed_becomes_figures_and_sentences():
    seen = {
        "burst": {
            **{"lag_p99_ms": 2.0, "quiet_lag_p99_ms": 0.5, "probe_p99_ms": 4.0, "quiet_p99_ms": 1.0},
            "reads_kept": 0.6,
        },
        "redis_down": {"up_p99_ms": 1.0, "down_p99_ms": 2.5, "added_p99_ms": 1.5, "errors": 0.0},
        "nats_down": {"writes": 4000.0, "failed": 0.0},
    }
    assert outages.ratios(seen) == {
        "login_burst_lag_p99_ms": 2.0,
        "login_burst_probe_p99_ms": 4.0,
        "login_burst_reads_kept": 0.6,
        "redis_down_added_p99_ms": 1.5,
        "redis_down_errors": 0.0,
        "nats_down_failed_writes": 0.0,
    }
    assert len(list(outages.sentences(seen))) == 3
    assert outages.ratios({}) == {}
    assert not list(outages.sentences({}))


def test_a_peer_that_cannot_be_installed_is_left_out_with_its_reason(monkeypatch):
    def refuse() -> None:
        raise BenchError("no way to the registry")

    monkeypatch.setattr(people, "INSTALLERS", {"wheels": refuse, "fastify": lambda: None})
    told = []
    rows, skipped = users._prepare(ROWS, told.append)
    assert [row.name for row in rows] == ["fastify", "fastify-cache", "ours"]
    assert skipped == dict.fromkeys(("template", "drf", "orm"), "no way to the registry")
    assert "without drf: no way to the registry" in told


async def test_a_loop_that_is_held_up_is_told_late():
    async def serve(scope, receive, send):
        await asyncio.sleep(0.01)
        time.sleep(0.05)  # what must not happen in a loop
        await asyncio.sleep(0.01)

    sent = []

    async def send(message):
        sent.append(message)

    app = Application(FastAPI(), serve, Runtime(), None)
    watch = Watch(app)
    async with app.runtime.tasks:
        await watch({"type": "lifespan"}, None, send)
        await watch({"type": "http", "path": PATH}, None, send)
    late = json.loads(sent[-1]["body"])
    assert max(late) > 0.02


@pytest.fixture
def driver(tmp_path):
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed: apt-get install -y wrk")
    with stand(tmp_path) as own:
        stage = Stage(
            own, people.Wheels(lock=people.LOCK), {}, Ed25519PrivateKey.generate(), "s" * 32, people.new_people()
        )
        yield Driver(stage, tmp_path)


def test_every_window_registers_other_people(driver):
    texts = [driver.script("create", "token").read_text() for _ in range(2)]
    assert texts[0] != texts[1]
    assert all('"Bearer token"' in text for text in texts)


def test_only_a_fresh_read_asks_past_the_cache(driver):
    assert "no-cache" in driver.script("read", "token", fresh=True).read_text()
    assert "no-cache" not in driver.script("read", "token").read_text()


@pytest.mark.parametrize("kind", ["read", "list", "create", "cached-read", "log-in"])
def test_wrk_takes_every_script(driver, kind):
    # Nobody listens there: wrk reads the script first, and would say what is wrong with it as well.
    with pytest.raises(BenchError) as refused:
        driver.load(kind, 1, "token", seconds=1)
    assert "onnect" in str(refused.value)
    assert ".lua" not in str(refused.value)


def test_fastifys_packages_are_pinned_and_its_server_is_javascript():
    package = json.loads((people.CRUD / "fastify" / "package.json").read_text())
    assert all(version[0].isdigit() for version in package["dependencies"].values())
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    subprocess.run([node, "--check", people.CRUD / "fastify" / "server.mjs"], check=True, timeout=30)
