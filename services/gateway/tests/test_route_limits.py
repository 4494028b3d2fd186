"""The limits of a route: to whom each applies, what they take and give back, and what the answer says of them."""

import asyncio
import re
from collections.abc import Awaitable

import pytest

from services.gateway.domain.config import ConfigError, check
from services.gateway.domain.defaults import default_config
from services.gateway.domain.limiting import Limiter
from services.gateway.domain.route_limits import LimitOutcome, RouteLimits
from services.gateway.model import GatewayConfig, Limit, Route
from services.gateway.tests.limiting_rig import Clock, Switched
from shared.tokens import Identity

ADDRESS = "192.0.2.9"


def limit(name: str = "test", by: str = "address", quota: int = 3, window_s: float = 60, **fields: object) -> Limit:
    return Limit.model_validate({"name": name, "by": by, "quota": quota, "window_s": window_s, **fields})


def user(subject: str = "ann", role: str = "user", tier: str = "") -> Identity:
    return Identity(subject, role, "session", "token", 1e12, tier)


class Gate:
    """The limits of one route on a clock and a store of the test's own."""

    def __init__(self, *limits: Limit, cost: int = 1, path: str = "/x", beside: "Gate | None" = None) -> None:
        self.store = beside.store if beside else Switched(Clock())
        self.limiter = beside.limiter if beside else Limiter(self.store, clock=self.store.clock)
        route = Route(path=path, service="x", methods=("GET",), auth="public", cost=cost)
        self.limits = RouteLimits(route, limits, self.limiter)

    async def check(self, identity: Identity | None = None, address: str = ADDRESS) -> LimitOutcome:
        found = self.limits.check(identity, address)
        if isinstance(found, LimitOutcome):
            return found
        return await self.finish(found)

    async def finish(self, found: Awaitable[LimitOutcome]) -> LimitOutcome:
        async def run() -> LimitOutcome:
            return await found

        async with asyncio.TaskGroup() as group:
            task = group.create_task(run())
            while not task.done():
                await asyncio.sleep(0)
                await self.limiter.work_off()
        return task.result()

    async def passes(self, identity: Identity | None = None, address: str = ADDRESS, status: int = 200) -> bool:
        outcome = await self.check(identity, address)
        outcome.settle(status)
        return outcome.refused is None

    async def passed(self, count: int, identity: Identity | None = None, address: str = ADDRESS) -> int:
        return sum([await self.passes(identity, address) for _ in range(count)])


def headers(outcome: LimitOutcome) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in outcome.headers}


async def test_route_without_limits_lets_all_pass_and_says_nothing() -> None:
    gate = Gate()
    assert await gate.passed(50) == 50
    assert (await gate.check()).headers == ()


async def test_limit_by_address_counts_each_address() -> None:
    gate = Gate(limit(by="address"))
    assert [await gate.passed(5, address=address) for address in ("192.0.2.1", "192.0.2.2")] == [3, 3]


async def test_limit_by_user_counts_each_user_whatever_the_address() -> None:
    gate = Gate(limit(by="user"))
    assert await gate.passed(2, user("ann"), "192.0.2.1") + await gate.passed(3, user("ann"), "192.0.2.2") == 3
    assert await gate.passed(5, user("bob"), "192.0.2.1") == 3


async def test_limit_by_user_counts_the_address_of_who_is_not_signed_in() -> None:
    gate = Gate(limit(by="user"))
    assert await gate.passed(5, None, "192.0.2.1") == 3
    assert await gate.passed(5, None, "192.0.2.2") == 3


async def test_limit_by_route_counts_everybody_on_it() -> None:
    gate = Gate(limit(by="route"))
    other = Gate(limit(by="route"), path="/y", beside=gate)
    assert await gate.passed(2, user("ann")) + await gate.passed(5, None, "192.0.2.2") == 3
    assert await other.passed(5) == 3


async def test_routes_with_one_limit_share_its_quota() -> None:
    gate = Gate(limit(by="user"))
    other = Gate(limit(by="user"), path="/y", beside=gate)
    assert await gate.passed(2, user()) + await other.passed(5, user()) == 3


async def test_limit_applies_only_to_whom_it_names() -> None:
    gate = Gate(limit("in", applies_to="signed_in", quota=2), limit("out", applies_to="anonymous", quota=4))
    assert (await gate.passed(9, user()), await gate.passed(9, None)) == (2, 4)


async def test_tier_of_the_token_gives_another_quota() -> None:
    gate = Gate(limit(by="user", quota=2, tiers={"gold": 5, "admin": 7}))
    quotas = {
        "none": await gate.passed(9, user("a")),
        "gold": await gate.passed(9, user("b", tier="gold")),
        "unknown": await gate.passed(9, user("c", tier="lead")),
        "role": await gate.passed(9, user("d", role="admin")),
        "tier before role": await gate.passed(9, user("e", role="admin", tier="gold")),
        "anonymous": await gate.passed(9, None),
    }
    assert quotas == {"none": 2, "gold": 5, "unknown": 2, "role": 7, "tier before role": 5, "anonymous": 2}
    assert headers(await gate.check(user("f", tier="gold")))["ratelimit-policy"] == '"test";q=5;w=60'


async def test_request_takes_the_cost_of_its_route() -> None:
    gate = Gate(limit(quota=10), cost=4)
    assert await gate.passed(5) == 2
    cheap = Gate(limit(quota=10), path="/y", beside=gate)
    assert await cheap.passed(5) == 2


async def test_what_a_later_limit_refuses_costs_the_earlier_nothing() -> None:
    gate = Gate(limit("first", quota=10), limit("second", by="route", quota=2))
    assert await gate.passed(9) == 2
    alone = Gate(limit("first", quota=10), path="/y", beside=gate)
    assert await alone.passed(20) == 8


async def test_refusal_names_the_limit_and_when_to_come_back() -> None:
    gate = Gate(limit("first", quota=100), limit("uploads", quota=2, window_s=600))
    await gate.passed(2)
    refused = (await gate.check()).refused
    assert refused is not None
    assert (refused.status, refused.problem_code) == (429, "rate_limited")
    assert refused.detail == "the limit uploads allows 2 in 600 s; try again in 300 s"
    assert refused.headers == {"Retry-After": "300"}


async def test_retry_after_is_true() -> None:
    gate = Gate(limit(quota=3, window_s=100))
    await gate.passed(3)
    refused = (await gate.check()).refused
    assert refused is not None
    gate.store.clock.now += int(refused.headers["Retry-After"])
    assert await gate.passed(2) == 1


async def test_retry_after_is_at_least_one_second() -> None:
    gate = Gate(limit(quota=600))
    await gate.passed(600)
    refused = (await gate.check()).refused
    assert refused is not None
    assert refused.headers == {"Retry-After": "1"}


async def test_headers_say_the_policy_and_what_is_left() -> None:
    gate = Gate(limit("signed-in", by="user", quota=600, applies_to="signed_in"))
    seen = [headers(await gate.check(user())) for _ in range(3)]
    assert [item["ratelimit"] for item in seen] == [f'"signed-in";r={left};t=1' for left in (599, 598, 597)]
    assert {item["ratelimit-policy"] for item in seen} == {'"signed-in";q=600;w=60'}


async def test_headers_of_several_limits_are_one_list() -> None:
    gate = Gate(limit("a", quota=600), limit("b", quota=60, window_s=3600))
    assert headers(await gate.check()) == {
        "ratelimit-policy": '"a";q=600;w=60, "b";q=60;w=3600',
        "ratelimit": '"a";r=599;t=1, "b";r=59;t=60',
    }


async def test_refusal_says_that_nothing_is_left_and_when_there_is_more() -> None:
    gate = Gate(limit(quota=2, window_s=600))
    await gate.passed(2)
    gate.store.clock.now += 100
    assert headers(await gate.check())["ratelimit"] == '"test";r=0;t=200'


async def test_headers_are_structured_fields() -> None:
    """RFC 9651: a list of strings with integer parameters."""
    gate = Gate(limit("a", quota=1), limit("b", quota=7, window_s=1.5), cost=1)
    item = r'"[a-z0-9-]+"(;[a-z]+=\d{1,15})+'
    for outcome in (await gate.check(), await gate.check()):
        for _, value in outcome.headers:
            assert re.fullmatch(rf"{item}(, {item})*", value.decode())


async def test_failed_log_ins_count_and_others_do_not() -> None:
    gate = Gate(limit("failed", quota=3, window_s=600, counts="unauthorized"))
    for status in (200, 200, 422, 500, 0, 200):
        assert await gate.passes(status=status)
    assert [await gate.passes(status=401) for _ in range(5)] == [True, True, True, False, False]
    assert not await gate.passes(status=200)


async def test_failed_log_ins_under_way_are_counted_before_the_service_is_asked() -> None:
    gate = Gate(limit("failed", quota=3, window_s=600, counts="unauthorized"))
    outcomes = [await gate.check() for _ in range(9)]
    assert sum(outcome.refused is None for outcome in outcomes) == 3


async def test_settling_twice_counts_once() -> None:
    gate = Gate(limit("failed", quota=3, window_s=600, counts="unauthorized"))
    outcome = await gate.check()
    for status in (200, 401, 200, 200):
        outcome.settle(status)
    assert [await gate.passes(status=401) for _ in range(4)] == [True, True, True, False]


async def test_reservation_of_a_request_refused_by_a_later_limit_is_let_go() -> None:
    gate = Gate(limit("failed", quota=2, window_s=600, counts="unauthorized"), limit("all", quota=1, window_s=600))
    await gate.passed(9)
    alone = Gate(limit("failed", quota=2, window_s=600, counts="unauthorized"), path="/y", beside=gate)
    assert [await alone.passes(status=401) for _ in range(3)] == [True, True, False]


async def test_known_client_is_decided_without_waiting() -> None:
    gate = Gate(limit(by="user", quota=600))
    await gate.passed(20, user())
    assert isinstance(gate.limits.check(user(), ADDRESS), LimitOutcome)


async def test_request_that_goes_while_the_store_is_asked_costs_nothing() -> None:
    gate = Gate(
        limit("first", quota=4, window_s=6000),
        limit("failed", quota=4, window_s=6000, counts="unauthorized"),
        limit("last", by="route", quota=4, window_s=6000),
    )
    await gate.passed(1)
    found = gate.limits.check(None, ADDRESS)
    assert not isinstance(found, LimitOutcome)

    async def run() -> None:
        await found

    task = asyncio.get_running_loop().create_task(run())
    for _ in range(2):
        await asyncio.sleep(0)
        await gate.limiter.work_off()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gate.limiter.work_off()
    assert await gate.passed(9) == 3


async def test_without_the_store_nobody_waits_and_nothing_fails() -> None:
    gate = Gate(limit(quota=40), limit("failed", quota=40, counts="unauthorized", store_down="closed"))
    gate.store.is_up = gate.store.is_available = False
    outcomes = [gate.limits.check(None, ADDRESS) for _ in range(60)]
    decided = [outcome for outcome in outcomes if isinstance(outcome, LimitOutcome)]
    assert [outcome.refused is None for outcome in decided] == [True] * 10 + [False] * 50
    for outcome in decided:
        outcome.settle(401)


async def test_the_platforms_own_routes_have_their_limits() -> None:
    config = default_config(is_production=True)
    named = {item.name: item for item in config.limits}
    routes = {(route.path, route.methods[0]): route for route in config.routes}
    register, log_in, health = routes["/users", "POST"], routes["/auth/token", "POST"], routes["/health", "GET"]
    assert [named[name].quota for name in register.limits] == [600, 1200, 60]
    assert [named[name].counts for name in log_in.limits] == ["requests", "requests", "unauthorized"]
    assert health.limits == ()


def test_cost_above_a_quota_is_refused_when_the_file_is_read() -> None:
    limits = (limit("small", quota=5, tiers={"free": 2}),)
    route = Route(path="/x", service="x", methods=("GET",), auth="public", limits=("small",), cost=3)
    with pytest.raises(ConfigError, match="route /x: cost 3 is above the quota 2 of limit small"):
        check(GatewayConfig(routes=(route,), limits=limits))
