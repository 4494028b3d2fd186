"""Requests that the gateway refuses by itself: the right problem, and not one byte to an upstream."""

import json

import pytest


@pytest.fixture
async def refused(serve, start):
    """Send raw bytes, expect a problem and that the upstream saw nothing."""
    upstream = await serve()
    rig = await start(upstream)

    async def send(data: bytes, status: int, code: str):
        client = await rig.connect()
        reply = await client.ask(data)
        assert reply.status == status
        assert reply.get("content-type") == "application/problem+json"
        document = json.loads(reply.body)
        assert document["code"] == code
        assert document["request_id"] == reply.get("x-request-id")
        assert not upstream.wires
        return reply, client

    send.rig = rig
    return send


async def test_unknown_path_is_404(refused):
    await refused(refused.rig.get("/nowhere"), 404, "not_found")


async def test_wrong_method_is_405_and_names_the_right_ones(refused):
    reply, _ = await refused(refused.rig.get("/private/x", method="PATCH"), 405, "method_not_allowed")
    assert reply.get("allow") == "GET, POST"


async def test_wrong_method_on_an_own_path_is_405(refused):
    reply, _ = await refused(refused.rig.get("/live", method="POST"), 405, "method_not_allowed")
    assert "GET" in reply.get("allow")


@pytest.mark.parametrize(
    "target",
    [
        "/open/a%2Fb",
        "/open/a%2fb",
        "/open/a%5Cb",
        "/open/a%00",
        "/open/a\\b",
        "/open/../metrics",
        "/open/%2e%2e/metrics",
        "/open/./a",
        "/open/.%2E/a",
        "/open/..",
    ],
)
async def test_ambiguous_target_is_400(refused, target):
    await refused(refused.rig.get(target), 400, "ambiguous_target")


async def test_dots_inside_a_segment_are_no_dot_segment(serve, start):
    rig = await start(await serve())
    client = await rig.connect()
    assert (await client.ask(rig.get("/open/...a/.b/c..d"))).body == b"/open/...a/.b/c..d"


async def test_missing_host_is_400(refused):
    await refused(b"GET /open/x HTTP/1.1\r\n\r\n", 400, "bad_host")


async def test_two_hosts_are_400(refused):
    await refused(b"GET /open/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_host")


@pytest.mark.parametrize("host", ["", "a b", "a/b", "user@a", "a:b", "a,b", "[::1"])
async def test_malformed_host_is_400(refused, host):
    await refused(f"GET /open/x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), 400, "bad_host")


async def test_http_1_0_may_leave_the_host_out(serve, start):
    rig = await start(await serve())
    client = await rig.connect()
    assert (await client.ask(b"GET /open/x HTTP/1.0\r\n\r\n")).body == b"/open/x"


async def test_head_over_32_kib_is_431(refused):
    await refused(refused.rig.get("/open/x", f"X-A: {'a' * 33000}"), 431, "head_too_large")


async def test_over_100_fields_are_431(refused):
    await refused(refused.rig.get("/open/x", *(f"X-{n}: 1" for n in range(100))), 431, "head_too_large")


async def test_target_over_8_kib_is_414(refused):
    await refused(refused.rig.get("/open/" + "a" * 8200), 414, "uri_too_long")


async def test_compressed_body_is_415(refused):
    await refused(refused.rig.post("/open/x", b"abc", "Content-Encoding: gzip"), 415, "unsupported_media_type")


async def test_expired_deadline_is_504(refused):
    await refused(refused.rig.get("/open/x", "X-Request-Timeout-Ms: 0"), 504, "deadline_exceeded")


async def test_plain_request_to_a_websocket_address_is_426(refused):
    reply, _ = await refused(refused.rig.get("/ws/x"), 426, "upgrade_required")
    assert reply.get("upgrade") == "websocket"


async def test_host_that_is_not_served_is_421(serve, start):
    upstream = await serve()
    rig = await start(upstream, authorities="api.example, gateway.example:8080")
    client = await rig.connect()
    assert (await client.ask(b"GET /open/x HTTP/1.1\r\nHost: API.example\r\n\r\n")).status == 200
    assert (await client.ask(b"GET /live HTTP/1.1\r\nHost: 10.0.0.7:8080\r\n\r\n")).status == 200
    assert (await client.ask(b"GET /open/x HTTP/1.1\r\nHost: other.example\r\n\r\n")).status == 421


@pytest.mark.parametrize("path", ["/metrics", "/live", "/ready"])
async def test_own_paths_are_never_proxied(serve, start, path):
    upstream = await serve()
    rig = await start(upstream)
    client = await rig.connect()
    assert (await client.ask(rig.get(path))).status in (200, 401)
    assert not upstream.wires


async def test_declared_body_over_the_limit_is_413_before_it_is_read(refused):
    await refused(refused.rig.get("/small/x", "Content-Length: 1001", method="POST"), 413, "body_too_large")


async def test_413_reaches_a_client_that_sends_it_all_first(refused):
    reply, client = await refused(refused.rig.post("/small/x", b"a" * 10_000_000), 413, "body_too_large")
    assert reply.get("connection") == "close"
    assert await client.closed() == b""


async def test_connection_lives_on_after_a_small_refused_body(refused):
    _, client = await refused(refused.rig.post("/small/x", b"a" * 2000), 413, "body_too_large")
    assert (await client.ask(refused.rig.get("/live"))).status == 200


async def test_chunked_body_over_the_limit_is_413(refused):
    data = (
        refused.rig.get("/small/x", "Transfer-Encoding: chunked", method="POST")
        + b"7d0\r\n"
        + b"a" * 2000
        + b"\r\n0\r\n\r\n"
    )
    await refused(data, 413, "body_too_large")


async def test_refused_body_is_not_asked_for(refused):
    data = refused.rig.get("/small/x", "Content-Length: 2000", "Expect: 100-continue", method="POST")
    reply, client = await refused(data, 413, "body_too_large")
    assert reply.get("connection") == "close"
    assert await client.closed() == b""
