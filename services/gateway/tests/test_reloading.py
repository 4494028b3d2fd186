"""Another configuration while the gateway serves: all of it or none of it, and nobody's request is lost over it."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from services.gateway.domain.config import ConfigError, Fault, parse_config
from services.gateway.domain.defaults import default_config
from services.gateway.domain.reloading import LISTED_MAX, Changes, Configuration, changes_between
from services.gateway.model import GatewayConfig
from services.gateway.tests.rig import ROUTES, eventually
from services.gateway.tests.scripted import Wire, answer

BASE = default_config(is_production=False)
ANOTHER = '\n[[routes]]\npath = "/another/*"\nservice = "open"\nmethods = ["GET"]\nauth = "public"\n'


def config(text: str) -> GatewayConfig:
    return parse_config(text, BASE)


def test_nothing_has_changed_between_two_of_the_same() -> None:
    assert not changes_between(config(ROUTES), config(ROUTES))


def test_added_removed_and_changed_parts_are_named_with_what_changed() -> None:
    old = "[services.users]\nretries_max = 1\n[addresses]\nallow = ['10.0.0.1']\n" + ROUTES
    new = "[services.open]\nretries_max = 1\n[cors]\norigins = ['https://a.example.com']\n" + (
        ROUTES.replace("timeout_s = 0.2", "timeout_s = 0.3").replace('path = "/small/*"', 'path = "/tiny/*"')
    )
    assert changes_between(config(old.replace("users", "open", 1)), config(new)) == Changes(
        added=("route /tiny/* [POST]",),
        removed=("route /small/* [POST]",),
        changed=(
            "route /hasty/* [GET, POST]: timeout_s 0.2 -> 0.3",
            "addresses: allow [10.0.0.1] -> []",
            "cors: origins [] -> [https://a.example.com]",
        ),
    )


def test_a_limit_and_a_service_are_parts_too() -> None:
    limits = "[[limits]]\nname = 'signed-in'\nby = 'user'\nquota = 1\n" + ROUTES
    found = changes_between(config(ROUTES), config(limits + "[services.open.breaker]\nprobes = 9\n"))
    assert found.added == ("service open",)
    assert found.removed == ("limit anonymous", "limit registration", "limit failed-logins")
    assert found.changed == ("limit signed-in: quota 600 -> 1, applies_to signed_in -> all",)


def test_many_changes_are_counted_not_listed() -> None:
    many = config("".join(ANOTHER.replace("another", f"a{number}") for number in range(LISTED_MAX + 3)))
    listed = changes_between(many, config(ANOTHER)).listed()
    assert len(listed["removed"]) == LISTED_MAX + 1
    assert listed["removed"][-1] == "and 3 more"


async def test_a_refused_configuration_leaves_the_old_one() -> None:
    def read() -> GatewayConfig:
        raise ConfigError([Fault("no")])

    found = Configuration(BASE, read)
    found.swap = lambda _: pytest.fail("swapped")
    with pytest.raises(ConfigError):
        await found.reload()
    assert found.used is BASE


async def test_what_cannot_be_put_to_use_leaves_the_old_one() -> None:
    def refuse(_: GatewayConfig) -> None:
        raise ConfigError([Fault("too much")])

    found = Configuration(BASE, lambda: config(ROUTES))
    found.swap = refuse
    with pytest.raises(ConfigError):
        await found.reload()
    assert found.used is BASE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(ROUTES)
    return path


async def hang_up(event: str, log: list[structlog.typing.EventDict]) -> structlog.typing.EventDict:
    """Send SIGHUP and return the line that says what came of it."""
    seen = len(log)
    os.kill(os.getpid(), signal.SIGHUP)
    await eventually(lambda: any(line["event"] == event for line in log[seen:]))
    return log[-1]


async def test_hangup_puts_the_file_to_use_and_says_what_changed(serve, start, file):
    rig = await start(await serve(), config=ROUTES, config_file=str(file))
    client = await rig.connect()
    assert (await client.ask(rig.get("/another/x"))).status == 404
    file.write_text(ROUTES + ANOTHER)
    with capture_logs() as log:
        line = await hang_up("config_reloaded", log)
    assert line["changes"] == {"added": ["route /another/* [GET]"]}
    assert (await client.ask(rig.get("/another/x"))).body == b"/another/x"


async def test_hangup_over_a_bad_file_changes_nothing_and_names_the_line(serve, start, file):
    rig = await start(await serve(), config=ROUTES, config_file=str(file))
    client = await rig.connect()
    file.write_text(ROUTES.replace("public", "pubic", 1))
    with capture_logs() as log:
        line = await hang_up("config_refused", log)
    assert line["faults"] == [f'{file}:6:1: route /open/*: auth: "pubic" is not one of the choices; write "public"']
    assert (await client.ask(rig.get("/open/x"))).status == 200
    file.unlink()
    with capture_logs() as log:
        line = await hang_up("config_refused", log)
    assert line["faults"] == [f"{file} cannot be read: FileNotFoundError"]
    assert (await client.ask(rig.get("/open/x"))).status == 200


async def test_hangup_without_a_file_says_so(serve, start):
    await start(await serve())
    with capture_logs() as log:
        line = await hang_up("config_refused", log)
    assert line["faults"] == ["RH_GATEWAY_CONFIG_FILE names no file, so there is nothing to read again"]


async def test_a_request_under_way_ends_by_the_configuration_it_began_with(serve, start, file):
    go = asyncio.Event()

    async def patient(wire: Wire) -> None:
        while True:
            await wire.message()
            await go.wait()
            await wire.send(answer(b"late"))

    upstream = await serve(patient)
    rig = await start(upstream, config=ROUTES, config_file=str(file))
    client = await rig.connect()
    await client.send(rig.get("/open/x"))
    await eventually(lambda: upstream.received.endswith(b"\r\n\r\n"))
    file.write_text(ANOTHER)
    with capture_logs() as log:
        await hang_up("config_reloaded", log)
    go.set()
    assert (await client.message()).body == b"late"
    assert (await client.ask(rig.get("/open/x"))).status == 404


async def test_origins_of_the_file_hold_from_then_on(serve, start, file):
    rig = await start(await serve(), config=ROUTES, config_file=str(file))
    file.write_text(ROUTES + "[cors]\norigins = ['https://a.example.com']\n")

    async def handshake() -> int:
        wire = await rig.connect()
        headers = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        return (await wire.ask(rig.get("/ws/x", *headers, key, "Origin: https://a.example.com"))).status

    assert await handshake() == 403
    with capture_logs() as log:
        await hang_up("config_reloaded", log)
    # The scripted upstream speaks no WebSocket: that it was asked is what counts.
    assert await handshake() == 502
