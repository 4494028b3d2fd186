"""Key rotation on whole replicas: nobody is refused while keys turn, and what is taken back is refused."""

import asyncio
import itertools

import jwt
import pytest
from pydantic import SecretStr

from services.users.app import create
from services.users.domain import keys as keys_module
from shared.bus.connect import connected
from shared.revocation import follow
from shared.tasks import Supervisor
from shared.testing.bus_probe import eventually
from shared.testing.client import running
from shared.tokens import TokenVerifier


class Published:
    """The keys as another service fetches them, from one replica and then the other."""

    def __init__(self, clients):
        self._clients = itertools.cycle(clients)

    async def fetch(self):
        return (await next(self._clients).get("/.well-known/jwks.json")).json()["keys"]


@pytest.fixture
def settings(make_settings, postgres_url, nats_url):
    return make_settings(
        database_url=SecretStr(postgres_url), nats_url=SecretStr(nats_url), key_ahead_s=1, hash_memory_kib=8
    )


def kid_of(token):
    return jwt.get_unverified_header(token)["kid"]


async def test_no_token_is_refused_while_keys_turn_under_load(settings, api_of):
    async with running(create(settings)) as first, running(create(settings)) as second:
        clients = [first, second]
        await api_of(first).register("ada")
        admin = await api_of(first).admin()
        verifier = TokenVerifier(Published(clients))
        kids, asked = [], 0
        is_over = asyncio.Event()

        async def use(client, other):
            """Log in at one replica, use the token there, at the other one and at another service."""
            nonlocal asked
            while not is_over.is_set():
                token = (await api_of(client).tokens("ada"))["access_token"]
                kids.append(kid_of(token))
                bearer = {"Authorization": f"Bearer {token}"}
                for each in (client, other):
                    assert (await each.get("/auth/sessions", headers=bearer)).status_code == 200
                await verifier.verify(token)
                asked += 3

        async with asyncio.TaskGroup() as group:
            for client, other in (clients, reversed(clients)):
                group.create_task(use(client, other))
            for _ in range(2):
                seen = len(set(kids))
                assert (await second.post("/auth/keys/rotate", headers=admin)).status_code == 200
                await eventually(lambda seen=seen: len(set(kids[-4:])) == 1 and len(set(kids)) > max(seen, 1))
            is_over.set()

        assert len(set(kids)) == 3
        assert asked > 30
        states = [key["state"] for key in (await first.get("/auth/keys", headers=admin)).json()["items"]]
        assert states == ["active", "retired", "retired"]


async def test_a_key_taken_back_is_refused_by_every_service(settings, api_of, nats_url):
    async with running(create(settings)) as first, running(create(settings)) as second, Supervisor() as tasks:
        await api_of(first).register("ada")
        verifier = TokenVerifier(Published([first, second]))
        await follow(tasks, verifier, lambda: connected(nats_url, name="test"), issuer="users")
        stolen = (await api_of(first).tokens("ada"))["access_token"]
        await verifier.verify(stolen)
        admin = await api_of(second).admin()

        answer = await second.post("/auth/keys/rotate", json={"at_once": True}, headers=admin)
        assert [item["state"] for item in answer.json()["items"]] == ["active", "retired"]
        fresh = await api_of(second).admin()
        assert kid_of(fresh["Authorization"].removeprefix("Bearer ")) != kid_of(stolen)
        gone = await second.delete(f"/auth/keys/{kid_of(stolen)}", headers=fresh)
        assert gone.status_code == 204

        async def is_refused():
            bearer = {"Authorization": f"Bearer {stolen}"}
            return (await first.get("/auth/sessions", headers=bearer)).status_code == 401

        await eventually(is_refused)
        await eventually(lambda: verifier.remembered(stolen) is None)
        assert (await first.get("/auth/sessions", headers=fresh)).status_code == 200


async def test_a_replica_learns_of_other_keys_without_a_push(settings, api_of, monkeypatch):
    monkeypatch.setattr(keys_module, "POLL_S", 0.05)
    silent = settings.model_copy(update={"nats_url": SecretStr("memory://")})
    async with running(create(silent)) as first, running(create(silent)) as second:
        admin = await api_of(first).admin()
        await first.post("/auth/keys/rotate", json={"at_once": True}, headers=admin)
        await api_of(first).register("ada")

        async def signs_with_the_new_key():
            token = (await api_of(second).tokens("ada"))["access_token"]
            items = (await first.get("/auth/keys", headers=await api_of(first).admin())).json()["items"]
            return kid_of(token) == items[0]["kid"]

        await eventually(signs_with_the_new_key)


async def test_the_keys_that_sign_are_not_taken_back(client, api):
    admin = await api.admin()
    (item,) = (await client.get("/auth/keys", headers=admin)).json()["items"]
    assert set(item) == {"kid", "state", "since", "created_at"}

    answer = await client.delete(f"/auth/keys/{item['kid']}", headers=admin)

    assert (answer.status_code, answer.json()["code"]) == (409, "key_signs")
    assert (await client.delete("/auth/keys/none", headers=admin)).status_code == 404
