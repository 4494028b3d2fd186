"""The service behind the gateways under test: nginx answering from its configuration, so that it costs as little as can be."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.request import urlopen

from tests.bench import peers
from tests.bench.errors import Missing
from tests.bench.processes import ROOT, Stand, free_port
from tests.bench.service import STATUS_PATH

KEEPALIVE_REQUESTS = 1_000_000_000
"""nginx closes a connection after 1,000 requests by itself; connecting again is not what is measured."""

DOCUMENT = json.dumps(
    {
        "id": "0192f0c1-2b3c-7def-8a90-123456789abc",
        "username": "adal",
        "email": "ada@example.org",
        "full_name": "Augusta Ada King, Lady Lovelace",
        "role": "user",
        "created_at": "2026-11-25T00:00:00Z",
        "version": 12345678,
    },
    separators=(",", ":"),
)
assert len(DOCUMENT) == 204, len(DOCUMENT)


def temporary(folder: Path) -> str:
    """Return nginx's directives that keep what it writes in a folder of ours."""
    return f"client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;"


def configuration(port: int, folder: Path, documents: Mapping[str, str]) -> str:
    """Return nginx's configuration: `DOCUMENT` on every path, `documents` (JSON by path) on theirs."""
    own = "\n".join(
        f"    location = {path} {{ default_type application/json; return 200 '{text}'; }}"
        for path, text in documents.items()
    )
    return f"""
daemon off; worker_processes 1; pid {folder}/upstream.pid; error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests {KEEPALIVE_REQUESTS}; keepalive_timeout 1h; {temporary(folder)}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
{own}
    location = {STATUS_PATH} {{ stub_status; }}
    location / {{ default_type application/json; return 200 '{DOCUMENT}'; }}
  }}
}}
"""


def requests_got(port: int) -> int:
    """Ask the upstream how many requests it got before this one."""
    with urlopen(f"http://127.0.0.1:{port}{STATUS_PATH}", timeout=5) as answer:
        # "Active connections: 1", a line of names, then accepted, handled, requests.
        return int(answer.read().split(b"\n")[2].split()[2]) - 1


def start(stand: Stand, documents: Mapping[str, str]) -> tuple[str, int]:
    """Start the upstream on the load's core; returns which it is and its port. Without nginx it is the one in Python."""
    try:
        nginx = peers.find("nginx")
    except Missing:
        return "python", start_service(stand, documents)
    port, file = free_port(), stand.folder / "upstream.conf"
    file.write_text(configuration(port, stand.folder, documents))
    stand.wait_ready(stand.start("upstream", [nginx, "-c", file], core=stand.cores.load), port)
    return "nginx", port


def start_service(stand: Stand, documents: Mapping[str, str]) -> int:
    """Start the service that also takes and gives long bodies, on the load's core; returns its port."""
    port, file = free_port(), stand.folder / "documents.json"
    file.write_text(json.dumps({**documents, "*": DOCUMENT}))
    argv = [sys.executable, "-m", "tests.bench.service", str(port), file]
    stand.wait_ready(stand.start("service", argv, core=stand.cores.load, cwd=ROOT), port)
    return port
