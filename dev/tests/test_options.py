"""Facts about what `up` accepts and what reaches the services."""

import pytest

from dev.errors import CannotRun
from dev.external import address, given_urls
from dev.fleet import FLEET, INFRA
from dev.options import Options, common_settings, parse_replicas


def test_replicas_may_repeat_and_the_last_word_counts() -> None:
    assert parse_replicas(["users=2,realtime=3", "users=4"], FLEET) == {"users": 4, "realtime": 3}


@pytest.mark.parametrize(
    "text", ["users", "users=", "users=0", "users=-1", "users=33", "users=2.5", "users=²", "no-such=2"]
)
def test_a_bad_count_or_name_is_refused(text: str) -> None:
    with pytest.raises(CannotRun):
        parse_replicas([text], FLEET)


def test_one_replica_is_the_same_as_saying_nothing() -> None:
    assert Options(replicas={"users": 1}).arguments() == Options().arguments()
    assert Options(replicas={"users": 2}).arguments() != Options().arguments()


def test_settings_of_services_pass_and_strangers_are_refused() -> None:
    environ = {"RH_USERS_REQUIRE_IF_MATCH": "1", "LOG_LEVEL": "DEBUG", "PATH": "/bin"}

    assert common_settings(environ, FLEET) == {"LOG_LEVEL": "DEBUG"}
    for name in ("RH_X", "RH_USERS_REPLICA", "RH_GATEWAY_FD"):
        with pytest.raises(CannotRun, match=name):
            common_settings({name: "1"}, FLEET)


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("NATS_URL", "http://h:4222"),
        ("NATS_URL", "memory://"),
        ("REDIS_URL", "redis://:hidden@"),
        ("REDIS_URL", "redis://h:x"),
        ("DATABASE_URL", "mysql://h/x"),
        ("DATABASE_URL", "postgresql://[::1/x"),
    ],
)
def test_a_malformed_url_is_refused_without_showing_it(variable: str, url: str) -> None:
    with pytest.raises(CannotRun, match=f"{variable} is malformed") as refusal:
        given_urls(INFRA, {variable: url})

    assert url not in str(refusal.value)


def test_an_address_has_no_credentials_and_the_usual_port() -> None:
    assert address("REDIS_URL", "redis://:secret@cache.example/0") == ("cache.example", 6379)
    assert given_urls(INFRA, {"NATS_URL": "nats://u:p@h:1"}) == {"NATS_URL": "nats://u:p@h:1"}
