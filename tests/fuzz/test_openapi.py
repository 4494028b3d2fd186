"""The platform's OpenAPI document, tried through the gateway: no server error, and no answer that it does not describe.

schemathesis makes the requests from the document, good and bad ones; run by `make fuzz`, and so by `make test-all`.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.bench.errors import BenchError
from tests.bench.peers import STATE, Wheels
from tests.fleet import OwnFleet, own_fleet

LOCK = Path(__file__).with_name("fuzz.lock")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance"
RUN_S = 60
EXAMPLES = 25
PER_S = 150
"""Below what one address may ask in a minute only on the whole: the fleet of these tests exempts its own."""


@pytest.fixture(scope="session")
def program() -> Path:
    """schemathesis, installed once into `.roundhouse`."""
    wheels = Wheels(STATE.with_name("tools"), LOCK)
    try:
        wheels.install()
    except BenchError as error:
        pytest.skip(f"schemathesis could not be installed: {error}")
    return wheels.python.with_name("schemathesis")


@pytest.fixture(scope="session")
def fleet() -> Iterator[OwnFleet]:
    with own_fleet(RH_GATEWAY_EXEMPT="127.0.0.1") as own:
        yield own


@dataclass(frozen=True)
class Caller:
    """Who asks, and the id of the user whom the paths name: without one that is there, most answers would be 404."""

    token: str
    user_id: str


@pytest.fixture(scope="session")
def callers(fleet: OwnFleet) -> dict[str, Caller]:
    """Signed in before anything is tried: the tool's log-ins fail so often that the address is refused."""
    user, admin, other = (sign_in(fleet, role) for role in ("user", "admin", "other"))
    return {
        "nobody": Caller("", other.user_id),
        "owner": user,
        "stranger": Caller(user.token, other.user_id),
        "admin": Caller(admin.token, other.user_id),
    }


def sign_in(fleet: OwnFleet, role: str) -> Caller:
    """Return a user of a role with a live session."""
    body = {"username": f"fuzz-{role}", "email": f"fuzz-{role}@example.com", "password": "a turtle on a fence 7"}
    with httpx2.Client(base_url=fleet.url, timeout=15, trust_env=False) as client:
        made = client.post("/users", json=body)
        made.raise_for_status()
        if role == "admin":
            admin = {"Authorization": f"Bearer {fleet.admin_token()}"}
            client.patch(f"/users/{made.json()['id']}", json={"role": "admin"}, headers=admin).raise_for_status()
        answer = client.post("/auth/token", data={"username": body["username"], "password": body["password"]})
        answer.raise_for_status()
        return Caller(answer.json()["access_token"], made.json()["id"])


@pytest.mark.timeout(RUN_S + 240)
@pytest.mark.parametrize("role", ["nobody", "owner", "stranger", "admin"])
def test_every_answer_of_users_is_in_the_document(
    program: Path, fleet: OwnFleet, callers: dict[str, Caller], role: str, tmp_path: Path
) -> None:
    token, user_id = callers[role].token, callers[role].user_id
    (tmp_path / "schemathesis.toml").write_text(f'[parameters]\n"path.user_id" = "{user_id}"\n')
    argv = [
        *(
            str(program),
            "run",
            f"{fleet.url}/openapi.json",
            "--checks",
            CHECKS,
            "--phases",
            "examples,coverage,fuzzing",
        ),
        *("--max-examples", str(EXAMPLES), "--max-time", str(RUN_S), "--rate-limit", f"{PER_S}/s", "--seed", "7"),
        *("--include-path-regex", r"^/(users|auth|audit|\.well-known)", "--continue-on-failure", "--no-color"),
        # These end the session that is asked with.
        *("--exclude-path", "/auth/logout", "--exclude-path", "/auth/sessions"),
        # And an owner would end all by deleting itself.
        *(["--exclude-method", "DELETE"] if role == "owner" else []),
        *(["-H", f"Authorization: Bearer {token}"] if token else []),
    ]
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S + 200,
        check=False,
    )
    told = done.stdout[-8000:].replace(token or "no token", "[token]")
    assert done.returncode == 0, told + done.stderr[-2000:]
    assert "Tested:" in done.stdout, told
