"""The service as a process: it starts with nothing around it, and leaves when told."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(**variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.health"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "ENVIRONMENT": "test", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_starts_answers_and_drains_with_all_infrastructure_down() -> None:
    port = free_port()
    process = start(
        RH_HEALTH_PORT=str(port),
        NATS_URL=f"nats://u:s3cret@127.0.0.1:{free_port()}",
        REDIS_URL=f"redis://:s3cret@127.0.0.1:{free_port()}/0",
        DATABASE_URL=f"postgresql://u:s3cret@127.0.0.1:{free_port()}/x",
        RH_HEALTH_ENDPOINTS=f"users=127.0.0.1:{free_port()}",
    )
    try:
        end = time.monotonic() + 15
        while True:
            try:
                response = httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False)
                break
            except httpx2.ConnectError:
                assert time.monotonic() < end
                time.sleep(0.02)
        assert (response.status_code, response.json()) == (503, {"state": "down"})
        assert httpx2.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        logs, complaints = process.communicate(timeout=15)
        assert process.returncode == 0
        assert "s3cret" not in logs + complaints
        assert "Traceback" not in logs + complaints
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NATS_URL", "http://u:s3cret@x"),
        ("RH_HEALTH_SERVICES", "Users"),
        ("RH_HEALTH_PROBE_EVERY", "1"),
        ("RH_HEALTH_STALE_AFTER_S", "0"),
    ],
)
def test_a_bad_setting_is_one_sentence(variable: str, value: str) -> None:
    process = start(**{variable: value})
    _, complaints = process.communicate(timeout=15)
    assert process.returncode == 78
    assert variable in complaints
    assert "s3cret" not in complaints
    assert "Traceback" not in complaints
