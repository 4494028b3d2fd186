"""The gateway's two ports: as in its pod, one for clients and one for probes and scrapers."""

import asyncio
import os
import signal
import socket
import sys

import httpx2
import pytest

from tests.charts.chart import ROOT, render

START_TIMEOUT_S = 20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


async def wait_until_live(client: httpx2.AsyncClient, url: str) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                if (await client.get(url)).is_success:
                    return
            except httpx2.ConnectError:
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_scrapers_need_no_token_where_clients_do() -> None:
    rendered = render()
    (container,) = rendered.pod("gateway")["spec"]["containers"]
    own, public = free_port(), free_port()
    variables = rendered.variables("gateway") | {"RH_GATEWAY_PORT": str(own), "RH_GATEWAY_HOST": "127.0.0.1"}
    variables |= {"RH_GATEWAY_REPLICA": "gateway-1", "PATH": os.environ["PATH"]}
    # Nothing answers there: the gateway serves without either.
    for name, scheme in (("REDIS_URL", "redis"), ("NATS_URL", "nats")):
        del variables[f"{name}_FILE"]
        variables[name] = f"{scheme}://user:password@127.0.0.1:{free_port()}"
    variables["RH_GATEWAY_ENDPOINTS"] = f"users=127.0.0.1:{free_port()}"
    script = ROOT / "charts" / "roundhouse" / "files" / container["command"][1].rpartition("/")[2]
    _, _, *rest = container["args"]
    command = (sys.executable, str(script), "127.0.0.1", str(public), *rest)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=variables, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=5) as client:
            await wait_until_live(client, f"http://127.0.0.1:{own}/live")

            assert (await client.get(f"http://127.0.0.1:{own}/metrics")).status_code == 200
            assert (await client.get(f"http://127.0.0.1:{public}/metrics")).status_code == 401
            assert (await client.get(f"http://127.0.0.1:{public}/live")).status_code == 200
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_TIMEOUT_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
