"""Hostile requests to every route of the policy: a refusal that is a problem, never a fault of ours.

A new route is asked without a line here.
"""

import json

import pytest
from pydantic import SecretStr

from services.users.adapters.database import open_store
from services.users.app import create
from services.users.domain.policy import RULES
from services.users.tests.conftest import TABLES, execute
from shared.ids import new_id
from shared.testing.client import running

ANSWER_BYTES_MAX = 8192
"""An answer to rubbish does not send the rubbish back."""

SQL = "'; DROP TABLE users; --"
SEGMENTS = ["x", "%00", "%FF%FE", "%ED%A0%80", "..%2F..%2Fetc%2Fpasswd", "%27%20OR%201=1--", "%E2%80%AE", "x" * 4000]
QUERIES = [
    "%00=%00",
    "limit[]=1",
    "limit=1&limit=2",
    "cursor=%ED%A0%80",
    "q=%00&fields=%00&since=%00",
    "purge=%00&atomic=%00",
    "&".join(f"a{number}=1" for number in range(500)),
    "=&&=;",
]
HEADERS = [
    {"If-Match": f'"v{"9" * 4000}"'},
    {"If-Match": 'W/"v1", *, "'},
    {"If-None-Match": "\x7f,,,"},
    {"Idempotency-Key": "x" * 256},
    {"Idempotency-Key": "\t"},
    {"X-Forwarded-For": "::1%eth0, 999.1.1.1, \x80"},
    {"User-Agent": "\x01\x02" + "x" * 4000},
    {"Cookie": "__Host-rh_refresh=\x7f; __Host-rh_refresh=x; =", "X-CSRF": "1", "Origin": "null"},
    {"X-Request-Id": SQL, "Traceparent": "00-" + "z" * 50},
]
_TEXTS = ["", " ", "\x00", "\ud800", SQL, "x" * 2000, "\u202e", "\uffff", "1e999"]
_NAMES = ["username", "email", "password", "full_name", "role", "items", "token", "refresh_token", "at_once"]
GOOD = {"username": "grace", "email": "grace@example.com", "password": "long enough 1", "full_name": "Grace"}
_VALUES = [*_TEXTS, "x" * 900_000, None, True, -1, 2**80, 1e308, [], [[]], {}, {"$ne": 1}]
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
BODIES = [
    # Not what was asked for, or nothing that can be read.
    *((JSON, raw) for raw in (b"", b"{", b"null", b"[]", b'"x"', b"NaN", b"-", b"\xff\xfe", b"{}{}", b"\x00")),
    *((JSON, raw) for raw in (b"[" * 100_000, b'{"a":' * 50_000, b"9" * 100_000, b'{"username":' + b"[" * 500)),
    ("text/plain", b"{}"),
    ("", b"{}"),
    ("application/json; charset=utf-16", '{"a": 1}'.encode("utf-16")),
    ("application/merge-patch+json", b"[[]]"),
    # Each text in each field of what is fine otherwise, so that one which is let through gets as far as the store.
    *((JSON, json.dumps({**GOOD, name: text}).encode()) for name in GOOD for text in _TEXTS),
    *((JSON, json.dumps({name: text}).encode()) for name in _NAMES for text in _TEXTS),
    *((JSON, json.dumps({"items": [{**GOOD, name: text} for name in GOOD]}).encode()) for text in _TEXTS[:-2]),
    # Every value in every field at once, those that are known and one that is not.
    *((JSON, json.dumps(dict.fromkeys([*_NAMES, "x"], value)).encode()) for value in _VALUES),
    *((JSON, json.dumps({"items": [dict.fromkeys(_NAMES, value), value]}).encode()) for value in _VALUES),
    (JSON, json.dumps({"items": [{}] * 101}).encode()),
    (JSON, json.dumps(dict.fromkeys((*_TEXTS[2:5], "__proto__", "__class__"), 1)).encode()),
    (FORM, b"username=%00&password=%00&grant_type=password"),
    (FORM, b"username=%FF&password=%ED%A0%80&cookie=%00"),
    (FORM, b"username=" + b"x" * 1_000_000),
    (FORM, b"&" * 5000),
    (FORM, b"username=a&username=b&password[]=c"),
    ("multipart/form-data", b"--x\r\n"),
    ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n"),
]


@pytest.fixture
async def client(make_settings, contract_database):
    """On PostgreSQL, which refuses texts that memory would keep."""
    settings = make_settings(database_url=SecretStr(contract_database))
    async with open_store(contract_database, name="test"):
        await execute(contract_database, f"TRUNCATE {', '.join(TABLES)}")
    async with running(create(settings)) as found:
        yield found


async def assert_refused_well(client, method, target, **sent):
    answer = await client.request(method, target, **sent)
    told = f"{method} {target[:60]} {str(sent)[:200]}: {answer.status_code} {answer.text[:300]}"
    assert answer.status_code < 500, told
    assert len(answer.content) < ANSWER_BYTES_MAX, told
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json", told


async def send_rubbish(client, method, path, ids, headers):
    target = path.format(**ids)
    for content_type, body in BODIES:
        sent = {**headers, **({"Content-Type": content_type} if content_type else {})}
        await assert_refused_well(client, method, target, content=body, headers=sent)
    for query in QUERIES:
        await assert_refused_well(client, method, f"{target}?{query}", headers=headers)
    for more in HEADERS:
        raw = {**headers, **{name: value.encode("latin-1") for name, value in more.items()}}
        await assert_refused_well(client, method, target, json={}, headers=raw)
    if target != path:
        for segment in SEGMENTS:
            await assert_refused_well(client, method, path.format(**dict.fromkeys(ids, segment)), headers=headers)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_rubbish_is_refused_as_a_problem_by_every_route(client, api):
    for method, path in sorted(RULES):
        user = await api.register()
        ids = {"user_id": user["id"], "session_id": new_id(), "kid": "none"}
        await send_rubbish(client, method, path, ids, await api.admin())

    assert (await client.get("/users", headers=await api.admin())).status_code == 200
