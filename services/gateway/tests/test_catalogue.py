"""The platform's document, live: gathered once for all who ask, kept for a while, and whole when a service is down."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from services.gateway.domain import catalogue as module
from services.gateway.domain.catalogue import FRESH_S, SERVICES_MAX, Catalogue
from services.gateway.model import GatewayConfig
from services.gateway.tests.document_rig import BOOKS, OWN, ROUTES, SHOPS, config
from services.gateway.tests.rig import eventually
from shared import context
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded, Unavailable


class Services:
    """Services that answer with their documents, until they are told otherwise."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {"books": BOOKS, "shops": SHOPS}
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def fetch(self, name: str) -> Any:
        self.asked.append(name)
        await self.open.wait()
        if name not in self.documents:
            raise Unavailable(f"no replica of {name} answers")
        return self.documents[name]


class Rig:
    def __init__(self) -> None:
        self.services = Services()
        self.config: GatewayConfig = config()
        self.now = 1000.0
        self.catalogue = Catalogue(self.services.fetch, lambda: self.config, clock=lambda: self.now)
        self.catalogue.own = lambda: OWN

    async def document(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((await self.catalogue.current()).body)
        return found

    async def states(self) -> dict[str, str]:
        return {name: found["state"] for name, found in (await self.document())["x-roundhouse"]["services"].items()}

    def pass_time(self) -> None:
        self.now += FRESH_S


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    found = Rig()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(found.catalogue.run())
        yield found
        task.cancel()


async def test_all_who_ask_at_once_share_one_round(rig: Rig) -> None:
    shown = await asyncio.gather(*(rig.catalogue.current() for _ in range(20)))
    assert len({id(each) for each in shown}) == 1
    assert sorted(rig.services.asked) == ["books", "shops"]


async def test_a_document_is_kept_while_it_is_fresh_and_gathered_again_then(rig: Rig) -> None:
    first = await rig.catalogue.current()
    rig.now += FRESH_S * 0.9
    assert await rig.catalogue.current() is first
    rig.now += FRESH_S * 0.2
    again = await rig.catalogue.current()
    assert again is not first
    assert again.etag == first.etag
    assert len(rig.services.asked) == 4


async def test_a_service_that_is_down_is_shown_as_it_was_and_marked_stale(rig: Rig) -> None:
    before = await rig.document()
    del rig.services.documents["books"]
    rig.pass_time()
    after = await rig.document()
    assert after["paths"] == before["paths"]
    assert after["x-roundhouse"]["services"] == {
        "books": {"state": "stale", "reason": "no replica of books answers"},
        "shops": {"state": "live"},
    }
    rig.services.documents["books"] = BOOKS
    rig.pass_time()
    assert await rig.states() == {"books": "live", "shops": "live"}


async def test_a_service_that_was_never_seen_is_absent_and_the_others_are_shown(rig: Rig) -> None:
    del rig.services.documents["books"]
    assert await rig.states() == {"books": "absent", "shops": "live"}
    assert "/shops" in (await rig.document())["paths"]


async def test_a_document_that_cannot_be_merged_leaves_the_one_before(rig: Rig) -> None:
    await rig.document()
    rig.services.documents["books"] = {"openapi": "2.0"}
    rig.pass_time()
    found = await rig.document()
    assert found["x-roundhouse"]["services"]["books"] == {"state": "stale", "reason": "it is no OpenAPI 3.1 document"}
    assert "/books" in found["paths"]


async def test_a_service_that_hangs_is_waited_for_no_longer_than_its_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.document()
    monkeypatch.setattr(module, "FETCH_S_MAX", 0.01)
    rig.services.open.clear()
    rig.pass_time()
    assert await rig.states() == {"books": "stale", "shops": "stale"}


async def test_a_client_in_a_hurry_leaves_the_round_to_the_others(rig: Rig) -> None:
    rig.services.open.clear()
    patient = asyncio.create_task(rig.catalogue.current())  # noqa: TID251
    token = context.enter(context.RequestContext("r", deadline=Deadline.after(0.01)))
    with pytest.raises(DeadlineExceeded, match="gathering"):
        await rig.catalogue.current()
    context.leave(token)
    rig.services.open.set()
    assert b'"state":"live"' in (await patient).body
    assert len(rig.services.asked) == 2


async def test_a_client_that_goes_away_ends_nobody_elses_round(rig: Rig) -> None:
    rig.services.open.clear()
    gone = asyncio.create_task(rig.catalogue.current())  # noqa: TID251
    await eventually(lambda: len(rig.services.asked) == 2)
    other = asyncio.create_task(rig.catalogue.current())  # noqa: TID251
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    rig.services.open.set()
    await other
    assert len(rig.services.asked) == 2


async def test_another_configuration_is_shown_at_once(rig: Rig) -> None:
    assert "/shops" in (await rig.document())["paths"]
    rig.config = config(ROUTES.replace('path = "/shops/*"', 'path = "/stores/*"'))
    assert "/shops" not in (await rig.document())["paths"]


async def test_a_service_that_has_no_route_any_more_is_forgotten(rig: Rig) -> None:
    await rig.document()
    rig.config = config('[[routes]]\npath = "/shops/*"\nservice = "shops"\nmethods = ["GET"]\nauth = "public"\n')
    await rig.document()
    rig.config = config()
    del rig.services.documents["books"]
    assert (await rig.states())["books"] == "absent"


async def test_services_beyond_the_most_that_are_shown_are_named_as_absent(rig: Rig) -> None:
    rig.config = config(
        "".join(
            f'[[routes]]\npath = "/p{n}"\nservice = "s{n}"\nmethods = ["GET"]\nauth = "public"\n'
            for n in range(SERVICES_MAX + 2)
        )
    )
    found = (await rig.document())["x-roundhouse"]["services"]
    assert len(rig.services.asked) == SERVICES_MAX
    assert found[f"s{SERVICES_MAX}"]["reason"] == f"the documents of the first {SERVICES_MAX} services are shown"


async def test_a_fault_of_ours_is_told_to_those_who_wait() -> None:
    rig = Rig()

    def broken() -> Any:
        raise RuntimeError("a bug")

    rig.catalogue.own = broken
    work = asyncio.create_task(rig.catalogue.run())  # noqa: TID251
    with pytest.raises(Unavailable, match="the log"):
        await rig.catalogue.current()
    with pytest.raises(RuntimeError, match="a bug"):
        await work
