"""The health check of the images, as its own program: it believes nothing but a 200 from the service's own port."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.compose.stack import ROOT, free_port

PROBE = ROOT / "deploy" / "image" / "probe.py"


def probe(**environment: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-S", str(PROBE))
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=15, check=False)


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers /ready with a status, everything else with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield str(server.server_port)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", ""])
def test_a_ready_service_is_healthy_wherever_it_listens(host: str) -> None:
    with answering(200) as port:
        done = probe(RH_DEMO_PORT=port, RH_DEMO_HOST=host)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_service_that_is_not_ready_is_unhealthy_and_says_what_it_answered() -> None:
    with answering(503) as port:
        done = probe(RH_DEMO_PORT=port)
    assert done.returncode == 1
    assert "503" in done.stderr


def test_nobody_listening_is_unhealthy() -> None:
    done = probe(RH_DEMO_PORT=str(free_port()))
    assert done.returncode == 1
    assert "Refused" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("environment", [{}, {"RH_DEMO_PORT": "x"}, {"RH_A_PORT": "1", "RH_B_PORT": "2"}])
def test_without_one_port_it_says_what_to_set(environment: dict[str, str]) -> None:
    done = probe(**environment)
    assert done.returncode == 1
    assert "RH_<SERVICE>_PORT" in done.stderr
