"""The assembly: starting, refusing to start, the first admin, readiness, and what its servers' absence means."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from services.users.adapters.start import KeySealError, StoreError
from services.users.app import create
from services.users.settings import UsersSettings
from shared.settings import SettingsError, load
from shared.testing.client import running

ROOT = Path(__file__).parents[3]


async def test_the_first_admin_can_log_in(api, client):
    assert (await client.get("/auth/me", headers=await api.admin())).json()["role"] == "admin"


async def test_without_a_password_there_is_no_admin(make_settings, api_of):
    async with running(create(make_settings(admin_password=None))) as client:
        answer = await client.post("/auth/token", data={"username": "admin", "password": "admin-secret"})
        assert answer.status_code == 401


async def test_an_admin_that_is_there_keeps_its_password(make_settings, api_of, postgres_url):
    database_url = SecretStr(postgres_url)
    async with running(create(make_settings(database_url=database_url))):
        pass
    async with running(
        create(make_settings(database_url=database_url, admin_password=SecretStr("another one")))
    ) as client:
        await api_of(client).admin()


async def test_a_user_in_the_admins_way_is_told_and_the_service_starts(make_settings, api_of, postgres_url):
    database_url = SecretStr(postgres_url)
    async with running(create(make_settings(database_url=database_url, admin_password=None))) as client:
        await api_of(client).register("ada", email="admin@roundhouse.invalid")
    with capture_logs() as lines:
        async with running(create(make_settings(database_url=database_url))) as client:
            assert (await client.get("/ready")).status_code == 200
    assert "admin_not_made" in [line["event"] for line in lines]


async def test_a_wrong_seal_stops_the_start_with_a_sentence(make_settings, postgres_url):
    database_url = SecretStr(postgres_url)
    async with running(create(make_settings(database_url=database_url))):
        pass
    wrong = create(make_settings(database_url=database_url, key_seal=SecretStr("another-seal-altogether")))
    with capture_logs() as lines, pytest.raises(KeySealError):
        async with running(wrong):
            pass
    assert next(line["reason"] for line in lines if line["event"] == "start_failed").startswith("RH_USERS_KEY_SEAL")


async def test_a_store_that_refuses_us_stops_the_start(make_settings, postgres_url):
    scheme, _, rest = postgres_url.partition("://")
    wrong = SecretStr(f"{scheme}://roundhouse:wrong-password@{rest.rpartition('@')[2]}")
    with capture_logs() as lines, pytest.raises(StoreError):
        async with running(create(make_settings(database_url=wrong))):
            pass
    assert "wrong-password" not in json.dumps(lines, default=str)


async def test_without_nats_and_redis_the_service_is_ready_and_works(make_settings, api_of, postgres_url, unused_port):
    settings = make_settings(
        database_url=SecretStr(postgres_url),
        nats_url=SecretStr(f"nats://u:p@127.0.0.1:{unused_port}"),
        redis_url=SecretStr(f"redis://:p@127.0.0.1:{unused_port}/0"),
    )
    async with running(create(settings)) as client:
        api = api_of(client)
        await api.register("ada")
        assert (await client.get("/auth/me", headers=await api.bearer("ada"))).status_code == 200
        wrong = await client.post("/auth/token", data={"username": "ada", "password": "wrong"})
        assert wrong.status_code == 401
        assert (await client.get("/ready")).json() == {"state": "ready", "checks": {"postgres": "ok"}}


@pytest.fixture
def unused_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def load_from(monkeypatch, **environ):
    for name in [name for name in os.environ if name.startswith("RH_") or name.endswith("_URL")]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return load(UsersSettings)


def test_defaults_run_on_memory(monkeypatch):
    found = load_from(monkeypatch)

    assert found.database_url.get_secret_value() == "memory://"
    assert (found.access_token_lasts_s, found.hash_memory_kib, found.hash_passes) == (600, 19_456, 2)
    assert (found.failed_logins_max, found.failed_logins_window_s) == (100, 600)


def test_postgres_needs_a_seal(monkeypatch):
    database = {"DATABASE_URL": "postgresql://u:p@127.0.0.1/db"}
    for seal in ({}, {"RH_USERS_KEY_SEAL": "short"}):
        with pytest.raises(SettingsError, match=r"RH_USERS_KEY_SEAL.*16 characters"):
            load_from(monkeypatch, **database, **seal)


def test_secrets_come_from_files_and_are_masked(monkeypatch, tmp_path):
    for name in ("password", "seal"):
        (tmp_path / name).write_text(f"the-{name}-in-a-file\n")
    found = load_from(
        monkeypatch,
        RH_USERS_ADMIN_PASSWORD_FILE=str(tmp_path / "password"),
        RH_USERS_KEY_SEAL_FILE=str(tmp_path / "seal"),
    )

    assert found.admin_password is not None
    assert found.admin_password.get_secret_value() == "the-password-in-a-file"
    assert found.key_seal.get_secret_value() == "the-seal-in-a-file"
    assert "in-a-file" not in repr(found)


@pytest.mark.slow
async def test_the_process_serves_drains_and_keeps_what_was_written(postgres_url, nats_url, redis_url):
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": postgres_url,
        "NATS_URL": nats_url,
        "REDIS_URL": redis_url,
        "RH_USERS_REPLICA": "users-1",
        "RH_USERS_KEY_SEAL": "a-seal-for-the-tests",
        "RH_USERS_ADMIN_PASSWORD": "admin-secret",
    }
    statuses = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.users",
            cwd=ROOT,
            env={**environ, "RH_USERS_PORT": str(port)},
            stdout=subprocess.PIPE,
        )
        try:
            statuses.append(await register_once_ready(port))
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            output, _ = await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode == 0
        assert {json.loads(line)["replica"] for line in output.splitlines()} == {"users-1"}
        for secret in (b"correct horse", b"ada@example.com", b"admin-secret"):
            assert secret not in output
    assert statuses == [201, 409]


async def register_once_ready(port):
    body = {"username": "ada", "email": "ada@example.com", "password": "correct horse"}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client, asyncio.timeout(20):
        while True:
            try:
                if (await client.get("/ready")).status_code == 200:
                    return (await client.post("/users", json=body)).status_code
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
