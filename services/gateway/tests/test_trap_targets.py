"""Targets and methods in every form that HTTP knows: never to another host, never a path that was not asked for."""

import json

import pytest

from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Message


@pytest.fixture
async def rig(serve, start):
    upstream = await serve()
    rig = await start(upstream)
    rig.upstream = upstream
    return rig


async def refusal(rig, line: str, status: int, code: str, *headers: str) -> Message:
    client = await rig.connect()
    data = "\r\n".join([f"{line} HTTP/1.1", f"Host: gateway:{rig.port}", *headers, "", ""]).encode("latin-1")
    reply = await client.ask(data + rig.get("/open/behind"))
    assert (reply.status, reply.get("connection")) == (status, "close"), reply
    assert json.loads(reply.body)["code"] == code
    assert await client.closed() == b""
    assert not rig.upstream.wires
    return reply


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("http://gateway:{port}/open/x?a=1&b=%2F", "/open/x?a=1&b=%2F"),
        ("HTTP://Gateway:{port}/open/a//b;c", "/open/a//b;c"),
        ("https://gateway:{port}/open/x", "/open/x"),
    ],
)
async def test_absolute_target_of_this_server_is_served(rig, target, sent):
    client = await rig.connect()
    assert (await client.ask(rig.get(target.format(port=rig.port)))).body.decode() == sent
    assert rig.upstream.received.startswith(f"GET {sent} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    ("target", "host"),
    [("http://a/open/x", "a:80"), ("http://a:80/open/x", "a"), ("https://a:443/open/x", "a"), ("http://A/open/x", "a")],
)
async def test_authority_is_compared_as_addresses_are(rig, target, host):
    client = await rig.connect()
    assert (await client.ask(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())).body == b"/open/x"


async def test_absolute_target_without_a_path_is_the_root(rig):
    client = await rig.connect()
    for target in ("http://gateway:{port}", "http://gateway:{port}?a=1"):
        reply = await client.ask(rig.get(target.format(port=rig.port)))
        assert (reply.status, json.loads(reply.body)["instance"]) == (404, "/")


@pytest.mark.parametrize(
    "target",
    ["http://elsewhere/open/x", "http://gateway:1/open/x", "http://gateway/open/x", "http:///open/x"],
)
async def test_absolute_target_of_another_server_is_421(rig, target):
    await refusal(rig, f"GET {target}", 421, "misdirected_request")


async def test_absolute_target_does_not_go_around_the_served_authorities(serve, start):
    upstream = await serve()
    rig = await start(upstream, authorities="api.example")
    client = await rig.connect()
    data = b"GET http://%b/open/x HTTP/1.1\r\nHost: %b\r\n\r\n"
    assert (await client.ask(data % (b"other.example", b"other.example"))).status == 421
    assert (await client.ask(data % (b"api.example", b"api.example"))).status == 200


@pytest.mark.parametrize(
    "target",
    [
        "http://user:word@gateway:{port}/open/x",
        "/open/x#fragment",
        "http://gateway:{port}/open/x#fragment",
        "/open/x?a#b",
        "ftp://gateway:{port}/open/x",
        "file:///etc/passwd",
        "*",
    ],
)
async def test_target_that_is_none_of_a_servers_is_400(rig, target):
    await refusal(rig, f"GET {target.format(port=rig.port)}", 400, "bad_target")


@pytest.mark.parametrize(
    "target", ["open/x", "gateway:80", "?a=1", "#", "\\open", "/open/\xe9", "/open/\x7f", "/a\x00b"]
)
async def test_target_that_no_parser_takes_is_400(rig, target):
    await refusal(rig, f"GET {target}", 400, "malformed_request")


@pytest.mark.parametrize("target", ["elsewhere:443", "gateway:8080", "/open/x"])
async def test_connect_is_405_and_no_tunnel(rig, target):
    reply = await refusal(rig, f"CONNECT {target}", 405, "method_not_allowed")
    assert "GET" in reply.get("allow")


async def test_connect_that_poses_as_a_websocket_is_405(rig):
    handshake = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")
    await refusal(rig, "CONNECT /ws/x", 405, "method_not_allowed", *handshake)


KEY = "AAAAAAAAAAAAAAAAAAAAAA=="


async def test_options_of_the_server_as_a_whole_is_501(rig):
    await refusal(rig, "OPTIONS *", 501, "method_not_implemented")


@pytest.mark.parametrize("method", ["BREW", "GETS", "get", "X-!#$"])
async def test_unknown_method_is_501(rig, method):
    await refusal(rig, f"{method} /open/x", 501, "method_not_implemented")


@pytest.mark.parametrize("method", ["G\x00T", "GE(T", "(", "[]"])
async def test_method_that_is_no_word_is_400(rig, method):
    await refusal(rig, f"{method} /open/x", 400, "malformed_request")


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "PURGE", "LINK"])
async def test_method_that_no_route_takes_is_405_and_never_proxied(rig, method):
    client = await rig.connect()
    reply = await client.ask(rig.get("/open/x", method=method))
    assert (reply.status, json.loads(reply.body)["code"]) == (405, "method_not_allowed")
    assert "TRACE" not in reply.get("allow")
    assert not rig.upstream.wires


async def test_x_forwarded_host_routes_nothing(rig):
    client = await rig.connect()
    reply = await client.ask(rig.get("/open/x", "X-Forwarded-Host: elsewhere", "X-Original-URL: /metrics"))
    assert reply.body == b"/open/x"
    await eventually(lambda: b"x-forwarded-host: gateway:" in rig.upstream.received)
