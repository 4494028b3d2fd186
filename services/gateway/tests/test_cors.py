"""CORS as browsers judge it: exact origins, preflights that say what the route allows, one policy for every answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.config import ConfigError, check, parse_config
from services.gateway.domain.defaults import default_config
from services.gateway.lane.cors import CorsPolicy, asked_of
from services.gateway.lane.head import Headers, read_answer
from services.gateway.model import Cors
from services.gateway.settings import GatewaySettings
from shared.errors import Forbidden
from shared.settings import SettingsError, load

PAGE = b"http://localhost:3000"
TABLE = check(default_config(is_production=False))


def policy(*origins: str, max_age_s: int = 600) -> CorsPolicy:
    return CorsPolicy(Cors(origins=origins, max_age_s=max_age_s), lambda path: TABLE.find(path) or ())


def one(headers: Headers, name: str) -> bytes:
    found = [value for key, value in headers if key == name.encode()]
    assert len(found) <= 1, f"{name} came {len(found)} times"
    return found[0] if found else b""


@pytest.fixture
def cors() -> CorsPolicy:
    return policy("http://localhost:3000", "https://app.example.com")


def preflight(cors: CorsPolicy, method: bytes = b"GET", names: bytes = b"", path: str = "/users/1") -> Headers:
    found = cors.preflight(PAGE, method, names, path)
    assert found is not None
    assert found[0] == 204
    return found[1]


def test_allowed_page_reads_the_answer_and_its_headers(cors):
    headers = cors.answer_headers(PAGE)
    assert one(headers, "access-control-allow-origin") == PAGE
    assert one(headers, "access-control-allow-credentials") == b"true"
    exposed = set(one(headers, "access-control-expose-headers").decode().split(", "))
    assert {"ETag", "Location", "Allow", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID"} <= exposed
    assert one(headers, "vary") == b"Origin"


@pytest.mark.parametrize(
    "origin",
    [
        b"",
        b"null",
        b"http://localhost:3001",
        b"https://localhost:3000",
        b"http://localhost:3000.evil.example",
        b"http://evil.example/http://localhost:3000",
        b"HTTP://LOCALHOST:3000",
        b"http://localhost:3000, https://app.example.com",
    ],
)
def test_other_origins_get_nothing_but_a_warning_for_caches(cors, origin):
    assert cors.answer_headers(origin) == [(b"vary", b"Origin")]


def test_without_origins_nothing_is_added_and_no_preflight_is_one():
    closed = policy()
    assert closed.answer_headers(PAGE) == []
    assert closed.preflight(PAGE, b"GET", b"", "/users") is None


@pytest.mark.parametrize(("origin", "method"), [(b"", b"PUT"), (PAGE, b"")])
def test_options_without_the_question_is_no_preflight(cors, origin, method):
    assert cors.preflight(origin, method, b"", "/users/1") is None


def test_preflight_says_what_the_route_allows_for_how_long_and_for_whom(cors):
    headers = preflight(cors, b"PUT", b"authorization,content-type")
    assert one(headers, "access-control-allow-origin") == PAGE
    assert one(headers, "access-control-allow-credentials") == b"true"
    assert one(headers, "access-control-allow-methods") == b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
    assert one(headers, "access-control-allow-headers") == b"authorization, content-type"
    assert one(headers, "access-control-max-age") == b"600"
    assert one(headers, "vary") == b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


def test_preflight_names_the_methods_of_every_route_of_the_path(cors):
    # Three routes, one a method or two.
    assert one(preflight(cors, path="/users"), "access-control-allow-methods") == b"GET, HEAD, OPTIONS, POST"


def test_method_that_the_route_has_not_is_left_to_the_browser_to_refuse(cors):
    assert b"PATCH" not in one(preflight(cors, b"PATCH", path="/users"), "access-control-allow-methods")


def test_preflight_for_an_unknown_path_lets_the_request_come_and_hear_404(cors):
    assert b"PUT" in one(preflight(cors, b"PUT", path="/nowhere"), "access-control-allow-methods")


def test_preflight_of_a_foreign_page_is_forbidden(cors):
    with pytest.raises(Forbidden) as refused:
        cors.preflight(b"https://evil.example", b"GET", b"", "/users")
    assert refused.value.problem_code == "origin_not_allowed"


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        (b"", b""),
        (b"Authorization", b"authorization"),
        (b"x-own , if-match,\tidempotency-key", b"x-own, if-match, idempotency-key"),
        (b"x-request-id,traceparent,x-request-timeout-ms", b"x-request-id, traceparent, x-request-timeout-ms"),
        (b"x-a,x-a", b"x-a"),
        # What no request may carry past the gateway.
        (b"x-auth-sub,x-user-id,x-forwarded-for,forwarded,x-real-ip,x_user,connection,te", b""),
        (b"x-a, b c, x-d\r\nset-cookie: e=1,\xff,,;", b"x-a"),
        (b"x-a," * 1025, b""),
    ],
)
def test_asked_headers_are_allowed_where_they_have_an_effect(cors, asked, allowed):
    assert one(preflight(cors, names=asked), "access-control-allow-headers") == allowed


@given(st.binary(max_size=300))
def test_no_asked_header_can_break_out_of_the_answer(asked):
    value = one(preflight(policy("http://localhost:3000"), names=asked), "access-control-allow-headers")
    assert not set(value) - set(b"!#$%&'*+-.^`|~0123456789abcdefghijklmnopqrstuvwxyz, ")


def test_question_is_found_among_the_headers():
    headers = [
        (b"origin", PAGE),
        (b"access-control-request-method", b"PUT"),
        (b"access-control-request-headers", b"a,b"),
        (b"access-control-request-headers", b"c"),
    ]
    assert asked_of(headers) == (b"PUT", b"a,b,c")
    assert asked_of([(b"accept", b"*/*")]) == (b"", b"")


def test_cors_headers_of_a_service_are_dropped():
    names = ("allow-origin", "allow-credentials", "expose-headers", "allow-methods", "allow-headers", "max-age")
    own = [(b"access-control-" + name.encode(), b"*") for name in names]
    assert read_answer([*own, (b"x-a", b"1")]).passed == [(b"x-a", b"1")]


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("*", "name each origin"),
        ("null", "name each origin"),
        ("https://app.example.com/", "nothing after it"),
        ("https://app.example.com/path", "nothing after it"),
        ("https://*.example.com", "no origin"),
        ("app.example.com", "no origin"),
        ("https://", "no origin"),
        ("https://app.example.com:443", "write https://app.example.com"),
        ("http://app.example.com:80", "write http://app.example.com"),
    ],
)
def test_what_is_no_origin_is_refused_with_the_fix(monkeypatch, origin, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(f'[cors]\norigins = ["{origin}"]', default_config(is_production=False))
    monkeypatch.setenv("RH_GATEWAY_ORIGINS", f"https://good.example,{origin}")
    with pytest.raises(SettingsError, match=f"RH_GATEWAY_ORIGINS: .*{message}"):
        load(GatewaySettings)


def test_origin_is_kept_as_browsers_write_it():
    assert Cors(origins=("HTTPS://App.Example.com", "capacitor://localhost")).origins == (
        "https://app.example.com",
        "capacitor://localhost",
    )
