"""Faults of a configuration file: each says its place, its key, and what to write instead."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.config import FAULTS_MAX, ConfigError, check, parse_config
from services.gateway.domain.defaults import default_config
from services.gateway.model import GatewayConfig, Limit

BASE = default_config(is_production=False)
ROUTE = "[[routes]]\npath = '/a'\nservice = 'a'\nmethods = ['GET']\nauth = 'public'\n"


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse_config(text, BASE, "g.toml")
    return refused.value.lines


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("routes = 1", "g.toml:1:1: routes must be one or more [[routes]] tables"),
        ("# c\na = ", "g.toml:2:5: this is not TOML: Invalid value"),
        ("a = 1\na = 2\n", "g.toml:2:6: this is not TOML: Cannot overwrite a value"),
        ("[[route]]\npath = '/a'", "g.toml:1:1: route: there is no such section; did you mean routes?"),
        (
            "[x]",
            "g.toml:1:1: x: there is no such section; known are routes, limits, services, addresses, cors",
        ),
        (
            "\n[[routes]]\npath = '/a'\nservice = 'a'\nmethods = ['GET']\n",
            'g.toml:2:1: route /a: auth: is missing; write auth = one of "public", "signed_in", "admin"',
        ),
        (
            ROUTE.replace("'public'", "'signed-in'"),
            'g.toml:5:1: route /a: auth: "signed-in" is not one of the choices; write "signed_in"',
        ),
        (
            ROUTE.replace("'public'", "7"),
            'g.toml:5:1: route /a: auth: 7 is not one of the choices; write one of "public", "signed_in", "admin"',
        ),
        (
            ROUTE.replace("'GET'", "'GET',\n  'TRACE'"),
            'g.toml:5:3: route /a: methods: "TRACE" is not one of the choices; '
            'write one of "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"',
        ),
        (
            ROUTE.replace("['GET']", "[]"),
            "g.toml:4:1: route /a: methods: [] does not fit; write a list [...] of at least 1, "
            'each one of "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"',
        ),
        (
            ROUTE.replace("service = 'a'", "service = 'A!'"),
            "g.toml:3:1: route /a: service: must be lower-case letters, digits and -, at most 32, "
            "beginning with a letter",
        ),
        (
            ROUTE + "timeout_s = 0",
            "g.toml:6:1: route /a: timeout_s: 0 does not fit; write a number over 0 and at most 600",
        ),
        (
            ROUTE + "try_timeout_s = 'long'",
            'g.toml:6:1: route /a: try_timeout_s: "long" does not fit; write a number over 0 and at most 600',
        ),
        (ROUTE + "timout_s = 1", "g.toml:6:1: route /a: timout_s: there is no such key; did you mean timeout_s?"),
        (
            ROUTE + "limits = ['anonymos']",
            "g.toml:6:11: route /a: limit anonymos does not exist; did you mean anonymous?",
        ),
        (
            ROUTE.replace("/a'", "/metrics'"),
            "g.toml:2:1: route /metrics: path: /metrics is the gateway's own; choose another first segment",
        ),
        (ROUTE + ROUTE, "g.toml:9:12: route /a: GET is claimed twice; keep it in one of the two routes"),
        (
            ROUTE.replace("['GET']", "['GET', 'POST']") + "kind = 'websocket'",
            'g.toml:1:1: route /a: a websocket route opens with GET; write methods = ["GET"]',
        ),
        (
            "[[limits]]\nname = 'a'\nby = 'user'\nquota = 0",
            "g.toml:4:1: limit a: quota: 0 does not fit; write a whole number at least 1 and at most 10000000",
        ),
        (
            "[[limits]]\nname = 'a'\nby = 'user'\nquota = 1\ntiers = {gold = 'x'}",
            'g.toml:5:10: limit a: tiers.gold: "x" does not fit; write a whole number at least 1 and at most 10000000',
        ),
        (
            ROUTE + "[[limits]]\nname = 'a'\nby = 'user'\nquota = 1\n" * 2,
            "g.toml:11:1: limit a: there are two of that name; give one another name",
        ),
        (
            ROUTE + "limits = ['a']\n[[limits]]\nname = 'b'\nby = 'user'\nquota = 1\n",
            "g.toml:6:11: route /a: limit a does not exist; known are b",
        ),
        (
            "[services.users]\nretries = 1",
            "g.toml:2:1: services.users.retries: there is no such key; did you mean retries_max?",
        ),
        (
            "[services.users.breaker]\nvolume_min = 40",
            "g.toml:1:1: services.users.breaker: volume_min = 40 is never reached; write at most window = 20",
        ),
        (
            "[services.uesrs]\nretries_max = 1",
            "g.toml:1:1: services.uesrs: no route goes to a service of that name; did you mean users?",
        ),
        (
            '[services."B!"]',
            "g.toml:1:1: services.B!: must be lower-case letters, digits and -, at most 32, beginning with a letter",
        ),
        ("services = 1", "g.toml:1:1: services: 1 does not fit; write a table"),
        (
            "[addresses]\nallow = ['10.0.0.0/8',\n '10.0.0.1/8']",
            "g.toml:3:2: addresses: allow: '10.0.0.1/8' is not an address or a network such as 10.0.0.0/8: "
            "10.0.0.1/8 has host bits set",
        ),
        ("cors = 1", "g.toml:1:1: cors: 1 does not fit; write a table"),
    ],
)
def test_a_fault_names_its_place_and_the_fix(text: str, fault: str) -> None:
    assert faults(text) == [fault]


def test_every_fault_is_named_in_the_order_of_the_file() -> None:
    text = (
        "[corss]\n" + ROUTE.replace("'public'", "'all'") + "speed = 1\n[[limits]]\nname = 'a'\nby = 'me'\nquota = 1\n"
    )
    assert [line.split(":")[1] for line in faults(text)] == ["1", "6", "7", "10"]


def test_limits_that_the_platforms_own_routes_use_must_stay() -> None:
    found = faults("\n[[limits]]\nname = 'signed-in'\nby = 'user'\nquota = 1\n")
    assert found == [
        f"g.toml:2:1: limits: the platform's own routes use {name}, and the limits of a file replace all others; "
        f'write one with name = "{name}", or [[routes]] of your own'
        for name in ("anonymous", "registration", "failed-logins")
    ]


def test_a_broken_limit_does_not_make_its_routes_look_wrong() -> None:
    assert len(faults(ROUTE + "limits = ['a']\n[[limits]]\nname = 'a'\nby = 'user'\n")) == 1


def test_a_hopeless_file_is_not_listed_for_ever() -> None:
    found = faults("".join(f"[s{number}]\n" for number in range(FAULTS_MAX + 7)))
    assert len(found) == FAULTS_MAX + 1
    assert found[-1] == "and 7 more"


def test_a_long_or_unprintable_value_is_shown_short_and_printable() -> None:
    (found,) = faults(ROUTE.replace("'public'", '"\\u001b[31m' + "x" * 500 + '"'))
    assert len(found) < 200
    assert found.isprintable()


def test_nesting_without_end_is_refused() -> None:
    assert "nested" in faults("a = " + "[" * 100_000)[0]


def test_without_a_file_name_the_line_is_still_named() -> None:
    with pytest.raises(ConfigError, match=r"^line 1, column 1: x: there is no such section"):
        parse_config("[x]", BASE)


@given(st.text(max_size=60), st.integers(0, 200))
def test_a_file_that_is_cut_or_scrambled_is_read_or_refused_never_a_crash(noise: str, at: int) -> None:
    text = ROUTE + "limits = ['anonymous']\n[services.a]\nbreaker = {probes = 1}\n"
    with contextlib.suppress(ConfigError):
        parse_config(text[:at] + noise + text[at + len(noise) :], BASE)


def test_a_configuration_made_in_code_is_checked_too() -> None:
    twice = GatewayConfig(routes=(), limits=(Limit(name="a", by="user", quota=1),) * 2)
    with pytest.raises(ConfigError, match="limit a: there are two"):
        check(twice)
