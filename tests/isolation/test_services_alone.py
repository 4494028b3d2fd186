"""Each service alone: with only the dependencies it names, in a tree of only `shared` and itself, it passes its tests."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.fleet import until

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path.name for path in (ROOT / "services").iterdir() if (path / "pyproject.toml").exists())
INSTALL_TIMEOUT_S = 300
TESTS_TIMEOUT_S = 300
TEST_TOOLS = (
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "hypothesis",
    "httpx2",
    "websockets",
    "limits",
    "openapi-spec-validator",
)

IMPORT_ALL = """
import importlib, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    name = ".".join(path.with_suffix("").parts)
    if "tests" not in path.parts and not name.endswith(("__main__", "__init__")):
        importlib.import_module(name)
"""


def uv() -> str:
    found = ROOT / ".venv" / "bin" / "uv"
    path = str(found) if found.exists() else shutil.which("uv")
    if path is None:
        pytest.skip("uv is neither in .venv nor on PATH")
    return path


def run(*command: str, cwd: Path, timeout_s: int, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)[:200]}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"


def starts_and_stops(python: str, service: str, tree: Path) -> None:
    """Run the service with nothing but its own dependencies until it answers, then drain it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], f"RH_{service.upper()}_PORT": str(port)}
    process = subprocess.Popen([python, "-m", f"services.{service}"], cwd=tree, env=environment, stdout=subprocess.PIPE)

    def answers() -> bool:
        assert process.poll() is None, f"{service} ended {process.returncode}"
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/live", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    try:
        until(answers, f"{service} alive", 30)
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_TIMEOUT_S + TESTS_TIMEOUT_S)
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_passes_its_tests_alone(
    service: str, tmp_path: Path, nats_url: str, redis_url: str, postgres_server_url: str
) -> None:
    tree, venv = tmp_path / "tree", tmp_path / "venv"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "shared", tree / "shared", ignore=ignored)
    shutil.copytree(ROOT / "services" / service, tree / "services" / service, ignore=ignored)
    shutil.copy(ROOT / "services" / "__init__.py", tree / "services")
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    python = str(venv / "bin" / "python")
    install = (uv(), "pip", "install", "-q", "--python", python, "--require-hashes")

    run(uv(), "venv", "-q", str(venv), cwd=tree, timeout_s=60)
    needs = f"services/{service}/pyproject.toml"
    run(*install, "-r", needs, "-c", str(ROOT / "requirements.lock"), cwd=tree, timeout_s=INSTALL_TIMEOUT_S)
    run(python, "-c", IMPORT_ALL, f"services/{service}", cwd=tree, timeout_s=60)

    starts_and_stops(python, service, tree)

    lock = str(ROOT / "requirements-dev.lock")
    tools = tmp_path / "pyproject.toml"
    tools.write_text(f'[project]\nname = "tools"\nversion = "0"\ndependencies = {list(TEST_TOOLS)}\n')
    run(*install, "-r", str(tools), "-c", lock, cwd=tree, timeout_s=INSTALL_TIMEOUT_S)
    run(
        python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"services/{service}",
        cwd=tree,
        timeout_s=TESTS_TIMEOUT_S,
        ROUNDHOUSE_TEST_NATS_URL=nats_url,
        ROUNDHOUSE_TEST_REDIS_URL=redis_url,
        ROUNDHOUSE_TEST_DATABASE_URL=postgres_server_url,
    )  # fmt: skip
