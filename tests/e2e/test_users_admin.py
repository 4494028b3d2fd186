"""Users through the gateway as admins and careful clients use them: lists, batches, keys, deleting and restoring, the audit log."""

import asyncio
import secrets
import uuid
from typing import Any

import httpx2

from tests.e2e.client import MakeAccount, answered, assert_problem, sign_in

PASSWORD = "correct horse 9 battery"


def registration(name: str = "") -> dict[str, Any]:
    name = name or f"u{secrets.token_hex(6)}"
    return {"username": name, "email": f"{name}@example.com", "password": PASSWORD}


async def test_a_list_is_filtered_sorted_and_paged_over_all_replicas(
    client: httpx2.AsyncClient, admin_headers: dict[str, str]
) -> None:
    stem = f"list{secrets.token_hex(4)}"
    names = [f"{stem}-{number}" for number in range(5)]
    for name in names:
        assert (await client.post("/users", json=registration(name))).status_code == 201
    asked: dict[str, Any] = {"q": stem, "sort": "-username", "limit": 2, "fields": "username", "count": "true"}
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        page = await client.get("/users", params={**asked, "cursor": cursor}, headers=admin_headers)
        assert page.status_code == 200, page.text
        assert page.json()["count"] == 5
        assert all(list(item) == ["username"] for item in page.json()["items"])
        found += [item["username"] for item in page.json()["items"]]
        cursor = page.json()["next"]

    assert found == sorted(names, reverse=True)


async def test_a_request_under_a_key_is_carried_out_once_whichever_replica_gets_it(client: httpx2.AsyncClient) -> None:
    body, headers = registration(), {"Idempotency-Key": str(uuid.uuid4())}
    racing = await asyncio.gather(*(client.post("/users", json=body, headers=headers) for _ in range(8)))
    again = [await client.post("/users", json=body, headers=headers) for _ in range(4)]

    assert {answer.status_code for answer in racing} <= {201, 409}
    assert {answer.status_code for answer in again} == {201}
    assert {answer.headers["idempotency-replayed"] for answer in again} == {"true"}
    assert len({answer.content for answer in [*racing, *again] if answer.status_code == 201}) == 1
    other = await client.post("/users", json=registration(), headers=headers)
    assert assert_problem(other, 422)["code"] == "idempotency_key_reused"


async def test_a_batch_has_a_result_for_each_item(
    client: httpx2.AsyncClient, admin_headers: dict[str, str], make_account: MakeAccount
) -> None:
    taken = await make_account()
    items = [registration(), registration(taken.username), {"username": "x"}]
    answer = await client.post("/users/batch", json={"items": items}, headers=admin_headers)
    atomic = await client.post(
        "/users/batch", params={"atomic": "true"}, json={"items": items[1:2]}, headers=admin_headers
    )

    assert answer.status_code == 207, answer.text
    assert [result["status"] for result in answer.json()["results"]] == [201, 409, 422]
    assert assert_problem(atomic, 409)["code"] == "batch_refused"
    await sign_in(client, items[0]["username"], PASSWORD)
    assert_problem(await client.post("/users/batch", json={"items": items}, headers=taken.headers), 403)


async def test_a_deleted_user_is_restored_purged_and_all_of_it_in_the_audit_log(
    client: httpx2.AsyncClient, admin_headers: dict[str, str], make_account: MakeAccount
) -> None:
    account = await make_account()
    path = f"/users/{account.id}"
    assert (await client.delete(path, headers=account.headers)).status_code == 204
    assert_problem(await answered(lambda: client.get(path, headers=admin_headers), 404), 404)
    listed = await client.get("/users", params={"deleted": "true", "username": account.username}, headers=admin_headers)
    assert [item["id"] for item in listed.json()["items"]] == [account.id]

    restored = await client.post(f"{path}/restore", headers=admin_headers)

    assert (restored.status_code, restored.headers["etag"]) == (200, '"v2"')
    found = await answered(lambda: client.get(path, headers=admin_headers), 200)
    assert found.json() == restored.json()
    await sign_in(client, account.username, account.password)
    assert (await client.delete(path, params={"purge": "true"}, headers=admin_headers)).status_code == 204
    assert_problem(await client.post(f"{path}/restore", headers=admin_headers), 404)
    log = await client.get("/audit", params={"user": account.id}, headers=admin_headers)
    actions = [item["action"] for item in log.json()["items"] if item["action"].startswith("user.")]
    assert actions == ["user.purged", "user.restored", "user.deleted", "user.created"]
    assert all(item["request_id"] for item in log.json()["items"])
    assert account.email not in log.text
    assert_problem(await client.get("/audit", headers=(await make_account()).headers), 403)
