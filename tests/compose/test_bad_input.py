"""Bad settings of the containers: refused before anything runs half, each with the variable, the cause and the way out."""

import socket
from pathlib import Path

import pytest

from tests.compose.stack import ROOT, SECRETS, Stack, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EXIT_CONFIG = 78


def compose_with(env_file: Path, *arguments: str) -> tuple[int, str]:
    done = run("docker", "compose", "--env-file", str(env_file), *arguments)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("missing", SECRETS)
@pytest.mark.parametrize("form", ["absent", "empty"])
def test_a_missing_secret_is_refused_by_name_with_the_way_out(
    engine: None, tmp_path: Path, missing: str, form: str
) -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"{missing}=")]
    env_file = tmp_path / ".env"
    env_file.write_text("\n".join([*kept, f"{missing}=" if form == "empty" else ""]))
    code, said = compose_with(env_file, "config", "-q")
    assert code != 0
    assert f"set {missing} in .env; .env.example shows how" in said


def test_the_example_is_enough_for_a_trial(engine: None) -> None:
    assert compose_with(ROOT / ".env.example", "config", "-q") == (0, "")


@pytest.mark.parametrize("service", ["users", "realtime", "health"])
def test_the_examples_secrets_are_refused_in_production(stack: Stack, service: str) -> None:
    example = Stack(stack.project, ROOT / ".env.example", stack.port, "", tag=stack.tag)
    done = run(*example.command("run", "--rm", "--no-deps", "-e", "ENVIRONMENT=production", service))
    assert done.returncode == EXIT_CONFIG, done.stdout + done.stderr
    assert "holds a secret of the example file, which production refuses" in done.stderr
    assert "example-only" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("service", "setting", "named"),
    [
        ("users", "NATS_URL=http://u:hunter2@nats:4222", "NATS_URL"),
        ("users", "DATABASE_URL=mysql://u:hunter2@postgres/x", "DATABASE_URL"),
        ("health", "REDIS_URL=hunter2", "REDIS_URL"),
        ("gateway", "RH_GATEWAY_ENDPOINTS=nowhere", "RH_GATEWAY_ENDPOINTS"),
        ("gateway", "RH_GATEWAY_PROT=1", "RH_GATEWAY_PROT"),
    ],
)
def test_a_wrong_setting_is_one_sentence_without_its_value(
    stack: Stack, service: str, setting: str, named: str
) -> None:
    done = run(*stack.command("run", "--rm", "--no-deps", "-e", setting, service))
    assert done.returncode == EXIT_CONFIG, done.stdout + done.stderr
    assert named in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_refused_by_its_number(stack: Stack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env_file = stack.env_file.with_name("taken.env")
        env_file.write_text(stack.env_file.read_text() + f"ROUNDHOUSE_PORT={port}\n")
        other = Stack(f"{stack.project}-taken", env_file, port, "", tag=stack.tag)
        try:
            done = run(*other.command("up", "-d", "--no-deps", "gateway"))
        finally:
            run(*other.command("down", "-v"))
    assert done.returncode != 0
    assert str(port) in done.stderr
    assert "in use" in done.stderr or "already allocated" in done.stderr


@pytest.mark.parametrize(("argument", "said"), [("SERVICE=", "say which service"), ("SERVICE=nosuch", "nosuch")])
def test_an_image_of_no_service_is_not_built(engine: None, argument: str, said: str) -> None:
    done = run("docker", "build", "-q", "--build-arg", argument, ".")
    assert done.returncode != 0
    assert said in done.stderr
