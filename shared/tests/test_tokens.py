"""Tokens: only a fresh one of our issuer, for us, signed by a known key in the pinned way, says who is asking."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
import pytest

from shared import tokens
from shared.errors import Unauthorized, Unavailable
from shared.ids import new_id
from shared.testing.tokens import TokenMint
from shared.tokens import TokenVerifier


@pytest.fixture
def mint() -> TokenMint:
    return TokenMint()


@pytest.fixture
def verifier(mint: TokenMint) -> TokenVerifier:
    return TokenVerifier(mint)


async def test_a_good_token_says_who_is_asking(mint: TokenMint, verifier: TokenVerifier) -> None:
    subject = new_id()
    identity = await verifier.verify(mint.token(subject, role="admin"))
    assert (identity.subject, identity.role, identity.is_admin) == (subject, "admin", True)


async def test_a_token_may_name_a_tier(mint: TokenMint, verifier: TokenVerifier) -> None:
    assert (await verifier.verify(mint.token(tier="gold"))).tier == "gold"
    assert (await verifier.verify(mint.token())).tier == ""


async def test_a_token_is_verified_once_and_keys_are_fetched_once(mint: TokenMint, verifier: TokenVerifier) -> None:
    token = mint.token()
    assert verifier.remembered(token) is None
    first = await verifier.verify(token)
    assert verifier.remembered(token) is first
    await verifier.verify(mint.token())
    assert mint.fetches == 1


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "someone-else"},
        {"iss": "someone-else"},
        {"exp": int(time.time()) - 3600},
        {"sub": None},
        {"exp": None},
        {"jti": None},
        {"sid": None},
        {"role": None},
        {"aud": None},
        {"sub": ""},
        {"role": 5},
        {"tier": ["gold"]},
        {"nbf": int(time.time()) + 3600},
    ],
    ids=lambda claims: "-".join(claims),
)
async def test_a_wrong_claim_is_401(mint: TokenMint, verifier: TokenVerifier, claims: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized):
        await verifier.verify(mint.token(**claims))


async def test_expiry_has_its_own_code_and_a_leeway(mint: TokenMint, verifier: TokenVerifier) -> None:
    await verifier.verify(mint.token(lasts_s=-10))
    with pytest.raises(Unauthorized) as caught:
        await verifier.verify(mint.token(lasts_s=-60))
    assert caught.value.problem_code == "token_expired"


async def test_a_remembered_token_is_refused_after_its_expiry(
    mint: TokenMint, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = mint.token(lasts_s=5)
    await verifier.verify(token)
    later = time.time() + 60
    monkeypatch.setattr(tokens.time, "time", lambda: later)
    assert verifier.remembered(token) is None


def forged(mint: TokenMint) -> dict[str, str]:
    claims = jwt.decode(mint.token(role="admin"), options={"verify_signature": False})
    public = mint.private_key.public_key().public_bytes_raw()
    good = {"kid": mint.key_id, "typ": tokens.TYPE}
    stranger = TokenMint(mint.key_id)
    return {
        "no signature": jwt.encode(claims, None, algorithm="none", headers=good),
        "the public key as an HMAC secret": jwt.encode(claims, public, algorithm="HS256", headers=good),
        "another key under our kid": stranger.token(role="admin"),
        "an unknown kid": TokenMint("../../etc/passwd").token(),
        "another type": jwt.encode(
            claims, mint.private_key, algorithm="EdDSA", headers={"kid": mint.key_id, "typ": "JWT"}
        ),
        "no kid": jwt.encode(claims, mint.private_key, algorithm="EdDSA", headers={"typ": tokens.TYPE}),
        "garbage": "a.b.c",
        "empty": "",
        "huge": "x" * 9000,
        "cut": mint.token()[:-4],
    }


@pytest.mark.parametrize("kind", list(forged(TokenMint())))
async def test_a_forged_token_is_401(mint: TokenMint, verifier: TokenVerifier, kind: str) -> None:
    with pytest.raises(Unauthorized):
        await verifier.verify(forged(mint)[kind])


async def test_unknown_kids_cannot_flood_the_issuer(mint: TokenMint, verifier: TokenVerifier) -> None:
    await verifier.verify(mint.token())
    for number in range(20):
        with pytest.raises(Unauthorized):
            await verifier.verify(TokenMint(f"k{number}").token())
    assert mint.fetches <= 2


class Away:
    def __init__(self, mint: TokenMint) -> None:
        self.mint = mint
        self.is_away = True

    async def fetch(self) -> Sequence[Mapping[str, Any]]:
        if self.is_away:
            raise Unavailable
        return await self.mint.fetch()


async def test_without_any_key_the_answer_is_503_not_401(mint: TokenMint) -> None:
    with pytest.raises(Unavailable):
        await TokenVerifier(Away(mint)).verify(mint.token())


async def test_known_keys_go_on_while_the_issuer_is_away(mint: TokenMint, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Away(mint)
    source.is_away = False
    verifier = TokenVerifier(source)
    await verifier.verify(mint.token())
    source.is_away = True
    later = time.monotonic() + tokens.KEYS_FRESH_S + 60
    monkeypatch.setattr(tokens.time, "monotonic", lambda: later)

    identity = await verifier.verify(mint.token())

    assert identity.role == "user"


async def test_a_rotated_key_is_found_by_one_refetch(mint: TokenMint, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = TokenVerifier(mint)
    await verifier.verify(mint.token())
    mint.key_id = "next"
    later = time.monotonic() + tokens.REFETCH_WAIT_S + 0.1
    monkeypatch.setattr(tokens.time, "monotonic", lambda: later)

    await verifier.verify(mint.token())

    assert mint.fetches == 2


async def test_remembered_tokens_are_bounded(mint: TokenMint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "REMEMBERED_MAX", 3)
    verifier = TokenVerifier(mint)
    issued = [mint.token() for _ in range(5)]
    for token in issued:
        await verifier.verify(token)
    assert [verifier.remembered(token) is not None for token in issued] == [False, False, True, True, True]
