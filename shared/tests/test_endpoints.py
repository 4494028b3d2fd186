"""Endpoints: lists and files are read strictly, followed while running, and the last good answer outlives a bad one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.endpoints import Endpoints, EndpointsError, parse_address, parse_list


def write(path: Path, content: object) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(content if isinstance(content, str) else json.dumps(content))
    fresh.rename(path)


def test_a_list_names_services_and_may_repeat_them() -> None:
    found = parse_list("users=10.0.0.1:80, users=10.0.0.2:80,health=[::1]:9")
    assert found == {"users": [("10.0.0.1", 80), ("10.0.0.2", 80)], "health": [("::1", 9)]}


@pytest.mark.parametrize(
    "text", ["users", "users=host", "users=host:0", "users=host:70000", "=a:1", "Users=a:1", "u=http://a:1", "u=a@b:1"]
)
def test_a_wrong_list_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(EndpointsError):
        Endpoints(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_ip_address_and_port_can_be_read(ip: object, port: int) -> None:
    text = f"[{ip}]:{port}" if ":" in str(ip) else f"{ip}:{port}"
    assert parse_address(text) == (str(ip), port)


async def test_a_host_name_is_resolved() -> None:
    endpoints = Endpoints("users=localhost:4711")
    await endpoints.refresh()
    assert ("127.0.0.1", 4711) in endpoints.of("users")


async def test_an_unknown_name_hides_no_other() -> None:
    endpoints = Endpoints("users=no-such-host.invalid:1,health=127.0.0.1:2")
    await endpoints.refresh()
    assert endpoints.of("users") == ()
    assert endpoints.of("health") == (("127.0.0.1", 2),)


async def test_a_changed_file_is_followed_and_told(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    write(path, {"users": ["127.0.0.1:1"]})
    endpoints = Endpoints(f"file://{path}")
    told: list[int] = []
    endpoints.on_change.append(lambda: told.append(1))
    await endpoints.refresh()
    write(path, {"users": ["127.0.0.1:1", "127.0.0.1:2"]})
    await endpoints.refresh()
    await endpoints.refresh()
    assert endpoints.of("users") == (("127.0.0.1", 1), ("127.0.0.1", 2))
    assert len(told) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"users": "x"}', '{"users": ["nope"]}'])
async def test_a_broken_file_leaves_the_last_good_addresses(tmp_path: Path, content: str) -> None:
    path = tmp_path / "endpoints.json"
    write(path, {"users": ["127.0.0.1:1"]})
    endpoints = Endpoints(f"file://{path}")
    await endpoints.refresh()
    write(path, content)
    await endpoints.refresh()
    assert endpoints.of("users") == (("127.0.0.1", 1),)


async def test_a_missing_file_is_waited_for(tmp_path: Path) -> None:
    endpoints = Endpoints(f"file://{tmp_path}/with%20space/endpoints.json")
    await endpoints.refresh()
    assert endpoints.of("users") == ()
    (tmp_path / "with space").mkdir()
    write(tmp_path / "with space" / "endpoints.json", {"users": ["127.0.0.1:1"]})
    await endpoints.refresh()
    assert endpoints.of("users") == (("127.0.0.1", 1),)
