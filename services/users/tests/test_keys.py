"""Signing keys: shared by replicas, sealed in the store, and tokens that every service verifies."""

import asyncio
import json

import jwt
import pytest

from services.users.adapters import keys as keys_module
from services.users.adapters.database import open_store
from services.users.adapters.keys import SigningKeys, jwk_of, make_key, open_key
from services.users.adapters.memory import MemoryKeys
from services.users.adapters.memory_database import MemoryDatabase
from services.users.adapters.start import KeySealError
from shared.errors import Unauthorized, Unavailable
from shared.ids import new_id
from shared.tokens import TokenVerifier

SEAL = "a-seal-for-the-tests"


async def test_a_token_is_verified_by_the_shared_verifier(store, make_user):
    keys = await SigningKeys.load(store.keys, SEAL, lasts_s=600)
    user, session_id = make_user(role="admin"), new_id()

    token = keys.issue(user, session_id)
    identity = await TokenVerifier(keys).verify(token)

    assert (identity.subject, identity.role, identity.session_id) == (user.id, "admin", session_id)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert set(claims) == {"sub", "iss", "aud", "iat", "exp", "jti", "sid", "role"}
    assert claims["exp"] - claims["iat"] == 600
    header = jwt.get_unverified_header(token)
    assert (header["alg"], header["typ"]) == ("EdDSA", "at+jwt")
    assert header["kid"] == json.loads(keys.document)["keys"][0]["kid"]


async def test_replicas_that_start_together_share_one_key(postgres_url, make_user):
    async def replica(name):
        async with open_store(postgres_url, name=name) as store:
            return await SigningKeys.load(store.keys, SEAL, lasts_s=600)

    keys = await asyncio.gather(*(replica(f"users-{n}") for n in range(3)))

    assert len({item.document for item in keys}) == 1
    for issuer in keys:
        for verifier in keys:
            assert await TokenVerifier(verifier).verify(issuer.issue(make_user(), new_id()))


async def test_another_seal_is_a_clear_reason_not_to_start(store):
    await SigningKeys.load(store.keys, SEAL, lasts_s=600)

    with pytest.raises(KeySealError, match="RH_USERS_KEY_SEAL does not open"):
        await SigningKeys.load(store.keys, "another-seal-altogether", lasts_s=600)


def test_the_private_half_is_stored_sealed_and_bound_to_its_id():
    key = make_key(SEAL)
    private_key = open_key(key.sealed_key, SEAL, key.kid)

    assert private_key not in key.sealed_key
    assert make_key(SEAL).sealed_key != key.sealed_key
    with pytest.raises(KeySealError):
        open_key(key.sealed_key, SEAL, "another id")
    with pytest.raises(KeySealError):
        open_key(key.sealed_key[:-1] + bytes([key.sealed_key[-1] ^ 1]), SEAL, key.kid)
    with pytest.raises(KeySealError, match="form"):
        open_key(b"\x02" + key.sealed_key[1:], SEAL, key.kid)


def test_the_seal_is_derived_slowly(monkeypatch):
    monkeypatch.undo()

    assert keys_module.SEAL_COST == 2**14
    key = make_key(SEAL)
    assert open_key(key.sealed_key, SEAL, key.kid)


def test_only_the_public_half_is_published():
    key = make_key(SEAL)

    assert set(jwk_of(key)) == {"kty", "crv", "x", "kid", "alg", "use"}


async def test_reading_the_keys_again_changes_nothing(store, make_user):
    keys = await SigningKeys.load(store.keys, SEAL, lasts_s=600)
    before = keys.etag
    assert [jwk["kid"] for jwk in await keys.fetch()] == [jwk["kid"] for jwk in json.loads(keys.document)["keys"]]
    assert keys.etag == before


async def test_known_keys_go_on_verifying_while_the_store_is_away(store, make_user):
    keys = await SigningKeys.load(store.keys, SEAL, lasts_s=600)

    class Away:
        async def all(self):
            raise Unavailable

    keys._store = Away()

    assert await TokenVerifier(keys).verify(keys.issue(make_user(), new_id()))


async def test_a_token_of_a_strange_key_is_refused(store, make_user):
    keys = await SigningKeys.load(store.keys, SEAL, lasts_s=600)
    stranger = await SigningKeys.load(MemoryKeys(MemoryDatabase()), SEAL, lasts_s=600)

    with pytest.raises(Unauthorized):
        await TokenVerifier(keys).verify(stranger.issue(make_user(), new_id()))


async def test_a_store_that_hangs_holds_no_token_up(store, make_user, monkeypatch):
    monkeypatch.setattr(keys_module, "FETCH_TIMEOUT_S", 0.02)
    keys = await SigningKeys.load(store.keys, SEAL, lasts_s=600)

    class Hung:
        async def all(self):
            await asyncio.Event().wait()

    keys._store = Hung()
    user = make_user()
    assert (await TokenVerifier(keys).verify(keys.issue(user, new_id()))).subject == user.id
