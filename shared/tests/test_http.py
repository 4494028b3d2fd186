"""Side calls: any replica that answers will do, bounded, with the request's ids along."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from shared import context, http
from shared.deadline import Deadline
from shared.endpoints import Endpoints
from shared.errors import Unavailable

seen: list[httpx2.Request] = []


def client_of(answers: dict[int, httpx2.Response | Exception]) -> httpx2.AsyncClient:
    seen.clear()

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        found = answers[request.url.port or 0]
        if isinstance(found, Exception):
            raise found
        return found

    return httpx2.AsyncClient(transport=httpx2.MockTransport(answer))


@pytest.fixture
async def endpoints() -> Endpoints:
    found = Endpoints("users=127.0.0.1:1,users=127.0.0.1:2,users=127.0.0.1:3")
    await found.refresh()
    return found


async def test_a_replica_that_fails_is_passed_over(endpoints: Endpoints) -> None:
    answers = {1: httpx2.ConnectError("refused"), 2: httpx2.Response(500), 3: httpx2.Response(200, json={"keys": []})}
    async with client_of(answers) as client:
        for _ in range(10):
            assert await http.get_json(client, endpoints, "users", "/x") == {"keys": []}


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.ConnectError("refused"),
        httpx2.Response(503),
        httpx2.Response(200, content=b"no json"),
        httpx2.Response(200, content=b"[" * 200_000),
        httpx2.Response(200, content=b"1", headers={"content-encoding": "x"}),
    ],
    ids=["refused", "503", "no json", "too deep", "encoded"],
)
async def test_when_none_answers_usefully_it_is_unavailable(
    endpoints: Endpoints, answer: httpx2.Response | Exception
) -> None:
    async with client_of(dict.fromkeys((1, 2, 3), answer)) as client:
        with pytest.raises(Unavailable):
            await http.get_json(client, endpoints, "users", "/x")
    assert len(seen) == 3


async def test_a_service_without_replicas_is_unavailable(endpoints: Endpoints) -> None:
    async with client_of({}) as client:
        with pytest.raises(Unavailable, match="compute"):
            await http.get_json(client, endpoints, "compute", "/x")


async def test_the_requests_ids_and_deadline_go_along(endpoints: Endpoints) -> None:
    token = context.enter(context.RequestContext("r1", traceparent="00-t", deadline=Deadline.after(1)))
    async with client_of({n: httpx2.Response(200, json=1) for n in (1, 2, 3)}) as client:
        await http.get_json(client, endpoints, "users", "/x")
    context.leave(token)
    (request,) = seen
    assert request.headers["x-request-id"] == "r1"
    assert request.headers["traceparent"] == "00-t"
    assert int(request.headers["x-request-timeout-ms"]) <= 1000


@pytest.mark.parametrize("document", [[], {}, {"keys": 1}, {"keys": ["x"]}])
async def test_unreadable_keys_are_unavailable_not_a_crash(endpoints: Endpoints, document: object) -> None:
    async with client_of({n: httpx2.Response(200, json=document) for n in (1, 2, 3)}) as client:
        with pytest.raises(Unavailable):
            await http.JwksOverHttp(client, endpoints, "users", "/k").fetch()


async def endless() -> AsyncIterator[bytes]:
    while True:
        read.append(None)
        yield b" " * 65536


read: list[None] = []


async def test_a_body_over_the_limit_is_read_no_further(endpoints: Endpoints) -> None:
    read.clear()
    async with client_of({n: httpx2.Response(200, content=endless()) for n in (1, 2, 3)}) as client:
        with pytest.raises(Unavailable):
            await http.get_json(client, endpoints, "users", "/x")
    assert len(read) == 3 * (http.RESPONSE_BYTES_MAX // 65536 + 1)


async def drip() -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(0.01)
        yield b" "


async def test_an_answer_that_drips_is_given_up_in_time(endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CALL_TIMEOUT_S", 0.1)
    async with client_of({n: httpx2.Response(200, content=drip()) for n in (1, 2, 3)}) as client:
        with pytest.raises(Unavailable):
            await http.get_json(client, endpoints, "users", "/x")
    assert len(seen) == 3
