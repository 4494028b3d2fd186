"""The route table: longest prefix on whole segments, checked against a plain reading of the rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.config import ConfigError, check, parse_config
from services.gateway.domain.defaults import default_config
from services.gateway.domain.routing import RouteTable, RouteTableError, UpgradeRequired, check_target, table_of
from services.gateway.model import GatewayConfig, Route
from shared.errors import BadRequest, MethodNotAllowed

BASE = default_config(is_production=False)


def default_table(*, is_production: bool) -> RouteTable[Route]:
    return check(default_config(is_production=is_production))


def parse(text: str) -> GatewayConfig:
    return parse_config(text, BASE)


segments = st.sampled_from(["a", "b", "users", "user", "x.y"])
paths = st.lists(segments, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


def route(path: str, service: str = "users", methods: tuple[str, ...] = ("GET",), **fields: object) -> Route:
    return Route.model_validate({"path": path, "service": service, "methods": methods, "auth": "public", **fields})


def plainly(table_paths: list[str], path: str) -> str | None:
    """The rule, slowly: the path itself, else the longest `/*` whose segments begin the path."""
    if path in table_paths:
        return path
    asked = path.split("/")
    fitting = [p for p in table_paths if p.endswith("/*") and asked[: len(p.split("/")) - 1] == p.split("/")[:-1]]
    return max(fitting, key=len, default=None)


@given(st.sets(st.tuples(paths, st.booleans()), max_size=8), paths)
def test_look_up_agrees_with_the_rule(rows: set[tuple[str, bool]], path: str) -> None:
    table_paths = [f"{prefix}/*" if is_below else prefix for prefix, is_below in rows]
    table = table_of(route(p) for p in table_paths)
    found = table.resolve("GET", path)
    assert (found.path if found else None) == plainly(table_paths, path)


def test_prefix_does_not_take_a_longer_segment() -> None:
    table = table_of([route("/users/*")])
    assert table.resolve("GET", "/users2") is None
    assert table.resolve("GET", "/users") is not None
    assert table.resolve("GET", "/users/") is not None


def test_path_alone_does_not_take_what_is_below() -> None:
    assert table_of([route("/users")]).resolve("GET", "/users/1") is None


def test_deep_path_is_found_by_its_prefix() -> None:
    assert table_of([route("/a/*")]).resolve("GET", "/a" * 5000) is not None


def test_other_method_is_not_allowed_and_all_known_are_named() -> None:
    table = table_of([route("/a"), route("/a", methods=("POST", "PUT"))])
    with pytest.raises(MethodNotAllowed) as refused:
        table.resolve("DELETE", "/a")
    assert refused.value.headers["Allow"] == "GET, POST, PUT"


def test_routes_of_one_path_may_share_it_by_method() -> None:
    table = table_of([route("/a", "one"), route("/a", "two", ("POST",))])
    found = table.resolve("POST", "/a")
    assert found is not None
    assert found.service == "two"


def test_method_claimed_twice_is_refused() -> None:
    with pytest.raises(RouteTableError, match="route /a: GET is claimed twice"):
        table_of([route("/a"), route("/a")])


def test_websocket_address_is_for_handshakes_only() -> None:
    table = table_of([route("/ws", kind="websocket"), route("/plain")])
    with pytest.raises(UpgradeRequired):
        table.resolve("GET", "/ws")
    assert table.resolve_websocket("/ws") is not None
    assert table.resolve_websocket("/plain") is None
    assert table.resolve_websocket("/nowhere") is None


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/metrics/*",
        "/live",
        "/ready/*",
        "/live/x",
        "/*",
        "/",
        "",
        "users",
        "/a/",
        "/a//b",
        "/a/../b",
        "/a b",
        "/a%20",
        "/a/*/b",
    ],
)
def test_path_that_must_not_be_routed_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"route .*path:"):
        parse(f'[[routes]]\npath = "{path}"\nservice = "users"\nmethods = ["GET"]\nauth = "public"')


@pytest.mark.parametrize(
    "path",
    [b"/a%2Fb", b"/a%2fb", b"/a%5cb", b"/a\\b", b"/%00", b"/a/..", b"/a/./b", b"/%2E%2e/b", b"/.%2e", b"/a/..;/b"],
)
def test_ambiguous_target_is_refused(path: bytes) -> None:
    with pytest.raises(BadRequest):
        check_target(path)


@pytest.mark.parametrize(
    "path", [b"/", b"/a//b", b"/.well-known/x", b"/a..b", b"/...", b"/a%20b", b"/%41", b"/a;p=1", b"/.%2ea"]
)
def test_plain_target_passes(path: bytes) -> None:
    check_target(path)


@pytest.mark.parametrize(
    ("method", "path", "service", "auth"),
    [
        ("POST", "/users", "users", "public"),
        ("GET", "/users", "users", "admin"),
        ("PATCH", "/users/1", "users", "signed_in"),
        ("POST", "/auth/token", "users", "public"),
        ("POST", "/auth/refresh", "users", "public"),
        ("POST", "/auth/email/verify", "users", "public"),
        ("POST", "/auth/email/verify/request", "users", "signed_in"),
        ("POST", "/auth/password/forgot", "users", "public"),
        ("POST", "/auth/password/reset", "users", "public"),
        ("GET", "/auth/me", "users", "signed_in"),
        ("POST", "/auth/logout", "users", "signed_in"),
        ("GET", "/.well-known/jwks.json", "users", "public"),
        ("GET", "/sse/stream", "realtime", "signed_in"),
        ("POST", "/cpu-intensive", "compute", "signed_in"),
        ("GET", "/async-demo", "compute", "signed_in"),
        ("GET", "/blocking-demo", "compute", "signed_in"),
        ("GET", "/health", "health", "public"),
    ],
)
def test_default_table_is_the_platforms_contract(method: str, path: str, service: str, auth: str) -> None:
    found = default_table(is_production=True).resolve(method, path)
    assert found is not None
    assert (found.service, found.auth) == (service, auth)


def test_empty_file_changes_nothing() -> None:
    assert parse("") == BASE


def test_file_replaces_only_the_sections_it_names() -> None:
    found = parse("[services.users]\nretries_max = 0")
    assert found.services["users"].retries_max == 0
    assert found.routes == BASE.routes


def test_every_route_but_health_is_limited() -> None:
    unlimited = {route.path for route in BASE.routes if not route.limits}
    assert unlimited == {"/health"}


def test_detailed_health_is_public_in_development_only() -> None:
    for is_production, auth in ((False, "public"), (True, "signed_in")):
        found = default_table(is_production=is_production).resolve("GET", "/health/detailed")
        assert found is not None
        assert found.auth == auth


def test_token_route_takes_no_other_method_from_the_prefix_above_it() -> None:
    with pytest.raises(MethodNotAllowed):
        default_table(is_production=False).resolve("GET", "/auth/token")


@pytest.mark.parametrize("path", ["/metrics", "/live", "/ready", "/admin/users", "/docs", "/"])
def test_default_table_leaves_the_rest_alone(path: str) -> None:
    assert default_table(is_production=False).resolve("GET", path) is None
