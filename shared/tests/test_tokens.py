"""Tokens: only a fresh one of our issuer, for us, signed by a known key in the pinned way, says who is asking."""

import base64
import json
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


def signed(mint: TokenMint, payload: bytes, header: bytes) -> str:
    """Return a token of ours whatever it says, byte for byte."""
    parts = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, payload)]
    signature = mint.private_key.sign(b".".join(parts))
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", "ES256", "RS256", "eddsa", None, 5])
async def test_only_the_pinned_algorithm_counts(mint: TokenMint, verifier: TokenVerifier, algorithm: Any) -> None:
    claims = jwt.decode(mint.token(), options={"verify_signature": False})
    header = {"alg": algorithm, "kid": mint.key_id, "typ": tokens.TYPE}
    good = signed(mint, json.dumps(claims).encode(), json.dumps({**header, "alg": "EdDSA"}).encode())
    await verifier.verify(good)
    token = signed(mint, json.dumps(claims).encode(), json.dumps(header).encode())
    for each in (token, token.rpartition(".")[0] + "."):
        with pytest.raises(Unauthorized):
            await verifier.verify(each)


@pytest.mark.parametrize(
    "key_id",
    [
        "../../../../dev/null",
        "/etc/passwd",
        "x' UNION SELECT 'key' --",
        "test-key\x00",
        "TEST-KEY",
        " test-key",
        "http://evil.example/jwks.json",
        "",
        "k" * 4000,
    ],
)
async def test_a_key_id_is_looked_up_and_nothing_else(verifier: TokenVerifier, key_id: str) -> None:
    with pytest.raises(Unauthorized):
        await verifier.verify(TokenMint(key_id).token(role="admin"))


@pytest.mark.parametrize("key_id", [None, 5, ["test-key"], {"kid": "test-key"}])
async def test_a_key_id_is_a_text(mint: TokenMint, verifier: TokenVerifier, key_id: Any) -> None:
    claims = jwt.decode(mint.token(), options={"verify_signature": False})
    header = json.dumps({"alg": "EdDSA", "kid": key_id, "typ": tokens.TYPE}).encode()
    with pytest.raises(Unauthorized):
        await verifier.verify(signed(mint, json.dumps(claims).encode(), header))


async def test_a_key_that_a_token_brings_along_or_points_at_is_not_used(
    mint: TokenMint, verifier: TokenVerifier
) -> None:
    stranger = TokenMint(mint.key_id)
    claims = jwt.decode(stranger.token(role="admin"), options={"verify_signature": False})
    for brought in (
        {"jwk": stranger.jwk()},
        {"jku": "http://127.0.0.1:1/jwks.json"},
        {"x5u": "http://127.0.0.1:1/key.pem"},
        {"x5c": ["MII="]},
    ):
        header = {"kid": mint.key_id, "typ": tokens.TYPE, **brought}
        with pytest.raises(Unauthorized):
            await verifier.verify(jwt.encode(claims, stranger.private_key, algorithm="EdDSA", headers=header))


async def test_a_member_named_twice_is_refused_in_header_and_claims(mint: TokenMint, verifier: TokenVerifier) -> None:
    claims = json.dumps(jwt.decode(mint.token(), options={"verify_signature": False})).encode()
    header = json.dumps({"alg": "EdDSA", "kid": mint.key_id, "typ": tokens.TYPE}).encode()
    await verifier.verify(signed(mint, claims, header))
    for token in (
        signed(mint, claims[:-1] + b', "role": "admin"}', header),
        signed(mint, claims, header[:-1] + b', "kid": "other"}'),
        signed(mint, b'{"sub": "' + new_id().encode() + b'", ' + claims[1:], header),
    ):
        with pytest.raises(Unauthorized):
            await verifier.verify(token)


@pytest.mark.parametrize("payload", [b"[]", b'"text"', b"null", b"{", b"", b"\xff", b"{}"])
async def test_claims_that_are_none_are_refused(mint: TokenMint, verifier: TokenVerifier, payload: bytes) -> None:
    header = json.dumps({"alg": "EdDSA", "kid": mint.key_id, "typ": tokens.TYPE}).encode()
    with pytest.raises(Unauthorized):
        await verifier.verify(signed(mint, payload, header))


async def test_a_token_over_8_kib_is_refused_however_good_it_is(mint: TokenMint, verifier: TokenVerifier) -> None:
    padding = "x" * 5000
    while len(mint.token(padding=padding)) < tokens.TOKEN_CHARS_MAX - 4:
        padding += "x" * 3
    largest = mint.token(padding=padding)
    assert len(largest) <= tokens.TOKEN_CHARS_MAX
    assert await verifier.verify(largest)
    with pytest.raises(Unauthorized):
        await verifier.verify(mint.token(padding=padding + "x" * 12))


async def test_a_ticket_says_who_is_asking_and_how_long_its_socket_lives(
    mint: TokenMint, verifier: TokenVerifier
) -> None:
    subject, session_id = new_id(), new_id()
    identity = await verifier.verify_ticket(mint.ticket(subject, until_s=500, sid=session_id))
    assert (identity.subject, identity.session_id) == (subject, session_id)
    assert 490 < identity.expires_at - time.time() <= 500


async def test_a_ticket_is_no_token_and_a_token_no_ticket(mint: TokenMint, verifier: TokenVerifier) -> None:
    for ticket in (mint.ticket(), mint.ticket(aud=tokens.AUDIENCE), mint.token(aud=tokens.TICKET_AUDIENCE)):
        with pytest.raises(Unauthorized):
            await verifier.verify(ticket)
    for token in (mint.token(), mint.token(aud=tokens.TICKET_AUDIENCE, until=time.time() + 60), mint.ticket(aud="x")):
        with pytest.raises(Unauthorized) as caught:
            await verifier.verify_ticket(token)
        assert caught.value.problem_code in ("token_invalid", "ticket_invalid")


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"lasts_s": -6}, "ticket_expired"),
        ({"until": None}, "ticket_invalid"),
        ({"until": "soon"}, "ticket_invalid"),
        ({"until": [1]}, "ticket_invalid"),
        ({"sid": None}, "ticket_invalid"),
        ({"iss": "x"}, "ticket_invalid"),
    ],
)
async def test_a_bad_ticket_is_401(mint: TokenMint, verifier: TokenVerifier, claims: Any, code: str) -> None:
    await verifier.verify_ticket(mint.ticket(lasts_s=-3))
    with pytest.raises(Unauthorized) as caught:
        await verifier.verify_ticket(mint.ticket(**claims))
    assert caught.value.problem_code == code


async def test_keys_that_are_gone_are_forgotten_with_their_tokens(mint: TokenMint, verifier: TokenVerifier) -> None:
    token = mint.token()
    await verifier.verify(token)
    mint.key_id = "another"

    verifier.renew()

    assert verifier.remembered(token) is None
    assert await verifier.verify(mint.token())
    with pytest.raises(Unauthorized):
        await verifier.verify(token)


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
