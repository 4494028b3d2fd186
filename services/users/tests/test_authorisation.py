"""Every route with every caller: nobody, a user, another user, an admin. A new route without a row fails."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from services.users.app import create

USER_BODY = {"username": "ada", "email": "ada@example.com"}


@dataclass(frozen=True)
class Row:
    """A route and the status for each caller; the record in the path is the owner's."""

    method: str
    path: str
    nobody: int
    owner: int
    other: int
    admin: int
    sent: dict[str, Any] = field(default_factory=dict)


# `{n}` is the number of the caller, so that no two send the same name.
NEW = {"json": {"username": "new{n}", "email": "new{n}@example.com", "password": "correct horse"}}
LOGIN = {"data": {"username": "ada{n}", "password": "correct horse"}}
NO_REFRESH = {"json": {"refresh_token": "none"}}
NO_TOKEN = {"json": {"token": "none"}}
PATCH = {"json": {"full_name": "x"}}
RECORD = "/users/{user_id}"

MATRIX = [
    Row("POST", "/users", 201, 201, 201, 201, NEW),
    Row("GET", "/users", 401, 403, 403, 200),
    Row("HEAD", "/users", 401, 403, 403, 200),
    Row("OPTIONS", "/users", 204, 204, 204, 204),
    Row("GET", RECORD, 401, 200, 404, 200),
    Row("HEAD", RECORD, 401, 200, 404, 200),
    Row("PUT", RECORD, 401, 200, 404, 200, {"json": {"username": "ada{n}", "email": "other{n}@example.com"}}),
    Row("PATCH", RECORD, 401, 200, 404, 200, PATCH),
    Row("DELETE", RECORD, 401, 204, 404, 204),
    Row("OPTIONS", RECORD, 204, 204, 204, 204),
    Row("POST", RECORD + "/restore", 401, 403, 403, 404),
    Row("POST", "/users/batch", 401, 403, 403, 207, {"json": {"items": [{}]}}),
    Row("GET", "/audit", 401, 403, 403, 200),
    Row("HEAD", "/audit", 401, 403, 403, 200),
    Row("POST", "/auth/token", 200, 200, 200, 200, LOGIN),
    Row("POST", "/auth/refresh", 401, 401, 401, 401, NO_REFRESH),
    Row("POST", "/auth/email/verify/request", 401, 202, 202, 202),
    Row("POST", "/auth/email/verify", 422, 422, 422, 422, NO_TOKEN),
    Row("POST", "/auth/password/forgot", 202, 202, 202, 202, {"json": {"email": "ada{n}@example.com"}}),
    Row("POST", "/auth/password/reset", 422, 422, 422, 422, {"json": {"token": "none", "password": "battery staple"}}),
    Row("GET", "/auth/me", 401, 200, 200, 200),
    Row("POST", "/auth/logout", 401, 204, 204, 204),
    Row("POST", "/auth/ticket", 401, 200, 200, 200),
    Row("GET", "/auth/sessions", 401, 200, 200, 200),
    Row("DELETE", "/auth/sessions", 401, 204, 204, 204),
    # Here the id is that of a user, so it is nobody's session.
    Row("DELETE", "/auth/sessions/{session_id}", 401, 404, 404, 404),
    Row("GET", RECORD + "/sessions", 401, 403, 403, 200),
    Row("DELETE", RECORD + "/sessions", 401, 403, 403, 204),
    Row("GET", "/auth/keys", 401, 403, 403, 200),
    Row("POST", "/auth/keys/rotate", 401, 403, 403, 200),
    Row("DELETE", "/auth/keys/{kid}", 401, 403, 403, 404),
    Row("GET", "/.well-known/jwks.json", 200, 200, 200, 200),
    Row("HEAD", "/.well-known/jwks.json", 200, 200, 200, 200),
]
OPERATORS = {"/live", "/ready", "/metrics"}
"""Never routed by the gateway; the same in every service."""


def test_every_route_has_a_row(make_settings):
    routes = {
        (method, found.route.path)
        for found in iter_route_contexts(create(make_settings()).fastapi.routes)
        if hasattr(found.route, "methods") and found.route.path not in OPERATORS
        for method in found.route.methods
    }

    assert routes - {("GET", "/openapi.json"), ("HEAD", "/openapi.json")} == {(row.method, row.path) for row in MATRIX}


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: f"{row.method} {row.path}")
async def test_who_may(client, api, row):
    await api.register("bob")
    callers = {"nobody": {}, "other": await api.bearer("bob"), "admin": await api.admin(), "owner": None}
    for number, (caller, headers) in enumerate(callers.items()):
        # A new owner for each caller, since some routes change or delete the record.
        owner = await api.register(f"ada{number}")
        sent = {
            kind: {k: v.format(n=number) if isinstance(v, str) else v for k, v in body.items()}
            for kind, body in row.sent.items()
        }

        answer = await client.request(
            row.method,
            row.path.format(user_id=owner["id"], session_id=owner["id"], kid="none"),
            headers=await api.bearer(f"ada{number}") if headers is None else headers,
            **sent,
        )

        assert answer.status_code == getattr(row, caller), f"{caller}: {answer.text}"
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_a_foreign_record_and_none_look_the_same(client, api, method):
    owner = await api.register("ada")
    await api.register("bob")
    bearer = await api.bearer("bob")
    body = None if method in ("GET", "DELETE") else USER_BODY
    missing = owner["id"][:-4] + ("0000" if owner["id"][-4:] != "0000" else "1111")

    foreign = await client.request(method, f"/users/{owner['id']}", headers=bearer, json=body)
    absent = await client.request(method, f"/users/{missing}", headers=bearer, json=body)

    assert foreign.status_code == absent.status_code == 404
    assert {**foreign.json(), "instance": "", "request_id": ""} == {**absent.json(), "instance": "", "request_id": ""}


async def test_headers_that_claim_an_identity_are_not_believed(client, api):
    owner = await api.register("ada")
    claims = {
        "X-User-Id": owner["id"],
        "X-Role": "admin",
        "X-Forwarded-User": "admin",
        "X-HTTP-Method-Override": "DELETE",
    }

    assert (await client.get(f"/users/{owner['id']}", headers=claims)).status_code == 401
    bearer = await api.bearer("ada")
    assert (await client.get("/users", headers={**claims, **bearer})).status_code == 403
    assert (await client.get(f"/users/{owner['id']}", headers={**claims, **bearer})).status_code == 200
    assert (await client.get("/auth/me", headers=bearer)).status_code == 200
