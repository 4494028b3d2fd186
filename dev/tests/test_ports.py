"""Facts about remembered ports."""

import socket
from pathlib import Path

import pytest

from dev.ports import Ports


def test_a_name_gets_its_port_back(tmp_path: Path) -> None:
    first = Ports(tmp_path / "ports.json").take("nats")

    assert Ports(tmp_path / "ports.json").take("nats") == first


def test_a_port_that_somebody_took_is_replaced(tmp_path: Path) -> None:
    first = Ports(tmp_path / "ports.json").take("nats")

    with socket.create_server(("127.0.0.1", first)):
        assert Ports(tmp_path / "ports.json").take("nats") != first


def test_one_name_can_hold_two_ports_while_it_is_replaced(tmp_path: Path) -> None:
    ports = Ports(tmp_path / "ports.json")
    old, new = ports.take("users-1"), ports.take("users-1")
    assert old != new

    ports.release(old)
    ports.release(new)

    assert ports.take("users-1") == new


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nats": "x"}', '{"nats": 99999}'])
def test_a_torn_memory_costs_only_the_old_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "ports.json").write_text(text)

    assert 0 < Ports(tmp_path / "ports.json").take("nats") < 65536
