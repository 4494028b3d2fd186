"""A fleet of compose of the tests' own: its own project, port and secrets, gone with the test whatever happens."""

import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from dev.fleet import FLEET
from tests.fleet import until

ROOT = Path(__file__).parents[2]
SERVICES = tuple(service.name for service in FLEET.services)
SECRETS = ("POSTGRES_PASSWORD", "VALKEY_PASSWORD", "NATS_PASSWORD", "ADMIN_PASSWORD", "KEY_SEAL")
GATEWAY_WORKERS = 2
EXEMPT = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
"""From where Docker's bridges let a client on this machine come: tests ask more in a minute than one user may."""
VERB_TIMEOUT_S = 200
LOG_LINES = 40


def run(*command: str, timeout_s: float = VERB_TIMEOUT_S, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program with an environment that holds no setting of a fleet."""
    kept = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def ok(*command: str, timeout_s: float = VERB_TIMEOUT_S) -> str:
    """Run a program that must succeed; return what it printed."""
    done = run(*command, timeout_s=timeout_s)
    assert done.returncode == 0, (
        f"{' '.join(command)} ended {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@dataclass(slots=True)
class Stack:
    """One project of compose. `tree` is the checkout that its compose file and its code come from, `tag` that of its images."""

    project: str
    env_file: Path
    port: int
    admin_password: str = field(repr=False)
    tree: Path = ROOT
    tag: str = ""
    tags: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def use(self, tree: Path, tag: str) -> None:
        """Take compose file, code and images from here on from another tree."""
        self.tree, self.tag = tree, tag
        self.tags.add(tag)

    def command(self, *arguments: str) -> tuple[str, ...]:
        tag = ("env", f"ROUNDHOUSE_TAG={self.tag}")
        files = ("--env-file", str(self.env_file), "-f", str(self.tree / "compose.yaml"))
        return (*tag, "docker", "compose", "--progress", "quiet", "-p", self.project, *files, *arguments)

    def compose(self, *arguments: str, timeout_s: float = VERB_TIMEOUT_S) -> str:
        return ok(*self.command(*arguments), timeout_s=timeout_s)

    def up(self, *arguments: str) -> None:
        """Start what is named and wait until it is healthy; where that fails, show what the containers said."""
        done = run(*self.command("up", "-d", "--wait", "--wait-timeout", "120", *arguments))
        if done.returncode != 0:
            raise AssertionError(f"up failed\n{done.stderr[-3000:]}\n{self.shown()}")

    def shown(self) -> str:
        """Return the containers' states and the last lines that each wrote."""
        verbs = (("ps", "-a"), ("logs", "--no-color", "-n", str(LOG_LINES)))
        return "\n".join(run(*self.command(*verb)).stdout for verb in verbs)[-16_000:]

    def scale(self, service: str, count: int, *, recreate: bool = False) -> None:
        """Bring a service to so many replicas, all healthy; those that run stay as they are."""
        keep = () if recreate else ("--no-recreate",)
        self.up("--no-deps", *keep, "--scale", f"{service}={count}", service)

    def ids(self, service: str) -> list[str]:
        """Return the containers of a service, oldest first."""
        found = self.compose("ps", "-q", service).split()
        return sorted(found, key=lambda name: str(inspect(name)["Created"]))

    def admin_token(self) -> str:
        form = {"username": "admin", "password": self.admin_password}
        response = httpx2.post(f"{self.url}/auth/token", data=form, timeout=10)
        response.raise_for_status()
        return str(response.json()["access_token"])

    def state(self) -> str:
        """Return the fleet's state as clients see it, "" while nobody answers."""
        try:
            return str(httpx2.get(f"{self.url}/health", timeout=5).json().get("state", ""))
        except (httpx2.HTTPError, ValueError):
            return ""

    def until_state(self, state: str, timeout_s: float = 30) -> None:
        until(lambda: self.state() == state, f"the fleet is {state}", timeout_s)

    def remove(self) -> None:
        """Take away everything that the project made."""
        run(*self.command("down", "-v", "--remove-orphans", "-t", "3"))
        run("docker", "image", "rm", "-f", *(f"roundhouse-{name}:{tag}" for name in SERVICES for tag in self.tags))


def inspect(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ok("docker", "inspect", container))[0]
    return found


@contextmanager
def own_stack() -> Iterator[Stack]:
    """A project that is not yet up; removed at the end."""
    project = f"rh-test-{secrets.token_hex(4)}"
    made = {name: secrets.token_urlsafe(24) for name in SECRETS}
    port = free_port()
    with TemporaryDirectory(prefix="rh-compose-") as home:
        env_file = Path(home) / ".env"
        chosen = made | {
            "ROUNDHOUSE_PORT": str(port),
            "GATEWAY_WORKERS": str(GATEWAY_WORKERS),
            "GATEWAY_EXEMPT": EXEMPT,
            "MAIL_URL": "file:///tmp/mails",
        }
        env_file.write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
        stack = Stack(project, env_file, port, made["ADMIN_PASSWORD"])
        stack.use(ROOT, project)
        try:
            yield stack
        finally:
            stack.remove()


def why_no_engine() -> str:
    """Return why compose cannot be run here, "" where it can."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    if run("docker", "compose", "version").returncode != 0:
        return "docker has no compose"
    if run("docker", "version", "--format", "{{.Server.Version}}").returncode != 0:
        return "no Docker engine answers"
    return ""
