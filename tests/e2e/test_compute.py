"""Compute through the gateway: real work in other processes, overlap that is seen, and limits."""

import asyncio

import httpx2
import pytest

from tests.e2e.client import Account, assert_problem


@pytest.mark.parametrize(("n", "primes"), [(1, 0), (2, 0), (3, 1), (100, 25), (20000, 2262), (1_000_000, 78498)])
async def test_primes_below_n_are_counted(client: httpx2.AsyncClient, account: Account, n: int, primes: int) -> None:
    response = await client.post("/cpu-intensive", json={"n": n}, headers=account.headers)
    assert response.status_code == 200, response.text
    assert (response.json()["n"], response.json()["primes"]) == (n, primes)
    assert response.json()["duration_ms"] >= 0


@pytest.mark.parametrize(
    "body", [{}, {"n": 0}, {"n": -1}, {"n": "7"}, {"n": 1.5}, {"n": 10**12}, {"n": None}, {"n": 5, "x": 1}, []]
)
async def test_a_bad_n_is_422(client: httpx2.AsyncClient, account: Account, body: object) -> None:
    assert_problem(await client.post("/cpu-intensive", json=body, headers=account.headers), 422)


async def test_compute_needs_a_token(client: httpx2.AsyncClient) -> None:
    response = await client.post("/cpu-intensive", json={"n": 10})
    assert_problem(response, 401)
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_async_demo_overlaps_its_waits_within_the_limit(client: httpx2.AsyncClient, account: Account) -> None:
    body = (await client.get("/async-demo", params={"tasks": 10, "limit": 5}, headers=account.headers)).json()
    assert body["max_in_flight"] == 5
    assert body["duration_ms"] < body["serial_ms"]


async def test_a_blocking_call_does_not_stop_the_others(client: httpx2.AsyncClient, account: Account) -> None:
    done = 0
    async with asyncio.TaskGroup() as tasks:
        blocking = tasks.create_task(client.get("/blocking-demo", params={"ms": 1500}, headers=account.headers))
        while not blocking.done():
            assert (await client.get("/async-demo", headers=account.headers)).status_code == 200
            done += 1
    answer = blocking.result()
    assert answer.status_code == 200
    assert answer.json()["duration_ms"] >= 1500
    assert done >= 3


async def test_many_at_once_are_answered_or_refused_with_a_hint(client: httpx2.AsyncClient, account: Account) -> None:
    calls = (client.post("/cpu-intensive", json={"n": 2_000_000}, headers=account.headers) for _ in range(40))
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert any(answer.status_code == 200 for answer in answers)
    for answer in answers:
        if answer.status_code == 503:
            assert_problem(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
