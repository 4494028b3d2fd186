"""Facts about the list of the fleet: it is consistent in itself."""

from dev.fleet import FLEET, INFRA


def test_every_need_is_a_server_of_the_fleet() -> None:
    names = {server.name for server in INFRA}

    assert {need for service in FLEET.services for need in service.needs} <= names


def test_the_stop_order_names_each_service_once_and_the_public_one_first() -> None:
    assert sorted(FLEET.stop_order) == sorted(service.name for service in FLEET.services)
    assert FLEET.public
    assert FLEET.stop_order[0] == FLEET.public.name == "gateway"


def test_the_five_that_everything_rests_on_are_there() -> None:
    assert {"gateway", "users", "realtime", "compute", "health"} <= {service.name for service in FLEET.services}


def test_settings_prefixes_follow_the_names() -> None:
    for service in FLEET.services:
        assert service.prefix == f"RH_{service.name.upper()}_"
