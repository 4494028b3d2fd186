"""The gateways measured beside ours: each on one thread, with a pool of kept upstream connections that holds the whole load."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import peers
from tests.bench.processes import Running, Stand
from tests.bench.upstream import KEEPALIVE_REQUESTS, temporary

POOL = 1024
"""Kept upstream connections; a default of 20 (httpx) or 32 (Caddy) would measure connecting."""

NAIVE = Path(__file__).with_name("naive")


@dataclass(frozen=True, slots=True)
class Stage:
    """What a gateway is started with."""

    stand: Stand
    wheels: peers.Wheels
    upstream_port: int
    redis_url: str = ""

    def folder(self, name: str) -> Path:
        found = self.stand.folder / name
        found.mkdir(exist_ok=True)
        return found


@dataclass(frozen=True, slots=True)
class Started:
    """A gateway that is being started; `access_log` where it writes a line for each request."""

    running: Running
    access_log: Path | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the comparison. `log_mark` is in every line about a request; empty: it logs none."""

    name: str
    title: str
    start: Callable[[Stage, int], Started]
    log_mark: bytes = b""
    is_ours: bool = False
    is_all_on: bool = False


def nginx(stage: Stage, port: int, *, full: bool = False) -> Started:
    folder = stage.folder("nginx-full" if full else "nginx")
    access_log = folder / "access.log"
    log = f"access_log {access_log} combined;" if full else "access_log off;"
    zone = "limit_req_zone $binary_remote_addr zone=z:1m rate=1000000r/s;" if full else ""
    limit = "limit_req zone=z burst=1000000 nodelay;" if full else ""
    (folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  {log} {zone} keepalive_requests {KEEPALIVE_REQUESTS}; {temporary(folder)}
  upstream u {{ server 127.0.0.1:{stage.upstream_port}; keepalive {POOL}; keepalive_requests {KEEPALIVE_REQUESTS}; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ {limit} proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
""")
    name = "nginx-full" if full else "nginx"
    argv = [peers.find("nginx"), "-c", folder / "nginx.conf"]
    return Started(stage.stand.start(name, argv, core=stage.stand.cores.subject), access_log if full else None)


def nginx_full(stage: Stage, port: int) -> Started:
    return nginx(stage, port, full=True)


def haproxy(stage: Stage, port: int) -> Started:
    folder = stage.folder("haproxy")
    (folder / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  server s 127.0.0.1:{stage.upstream_port} pool-max-conn {POOL}
""")
    argv = [peers.find("haproxy"), "-db", "-f", folder / "haproxy.cfg"]
    return Started(stage.stand.start("haproxy", argv, core=stage.stand.cores.subject))


def caddy(stage: Stage, port: int) -> Started:
    folder = stage.folder("caddy")
    (folder / "Caddyfile").write_text(f"""
{{
  admin off
  auto_https off
  persist_config off
  log {{
    level ERROR
  }}
}}
http://:{port} {{
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:{stage.upstream_port} {{
    transport http {{
      keepalive_idle_conns_per_host {POOL}
    }}
  }}
}}
""")
    argv = [stage.wheels.program("caddy"), "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"]
    return Started(stage.stand.start("caddy", argv, core=stage.stand.cores.subject, env={"GOMAXPROCS": "1"}))


def traefik(stage: Stage, port: int) -> Started:
    folder = stage.folder("traefik")
    dynamic = {
        "http": {
            "routers": {"all": {"rule": "PathPrefix(`/`)", "service": "u", "entryPoints": ["web"]}},
            "services": {
                "u": {
                    "loadBalancer": {
                        "servers": [{"url": f"http://127.0.0.1:{stage.upstream_port}"}],
                        "serversTransport": "t",
                    }
                }
            },
            "serversTransports": {"t": {"maxIdleConnsPerHost": POOL}},
        }
    }
    static = {
        "entryPoints": {"web": {"address": f"127.0.0.1:{port}"}},
        "providers": {"file": {"filename": str(folder / "dynamic.yaml"), "watch": False}},
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "ERROR"},
    }
    # JSON is YAML.
    (folder / "dynamic.yaml").write_text(json.dumps(dynamic))
    (folder / "static.yaml").write_text(json.dumps(static))
    argv = [stage.wheels.program("traefik"), f"--configfile={folder / 'static.yaml'}"]
    return Started(stage.stand.start("traefik", argv, core=stage.stand.cores.subject, env={"GOMAXPROCS": "1"}))


def envoy(stage: Stage, port: int, *, full: bool = False) -> Started:
    name = "envoy-full" if full else "envoy"
    folder = stage.folder(name)
    access_log = folder / "access.log"
    (folder / "envoy.json").write_text(json.dumps(_envoy(port, stage.upstream_port, access_log if full else None)))
    argv = [
        stage.wheels.program("envoy"), "-c", folder / "envoy.json",
        "--concurrency", "1", "--disable-hot-restart", "--log-level", "error",
        # Its log is written each 10 s otherwise, long after the requests were counted.
        "--file-flush-interval-msec", "200",
    ]  # fmt: skip
    return Started(stage.stand.start(name, argv, core=stage.stand.cores.subject), access_log if full else None)


def envoy_full(stage: Stage, port: int) -> Started:
    return envoy(stage, port, full=True)


def _typed(kind: str, **fields: object) -> dict[str, object]:
    return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _envoy(port: int, upstream_port: int, access_log: Path | None) -> dict[str, object]:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    limit = _typed(
        "filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="limit",
        token_bucket={"max_tokens": 100_000_000, "tokens_per_fill": 100_000_000, "fill_interval": "60s"},
        filter_enabled=always,
        filter_enforced=always,
        enable_x_ratelimit_headers="DRAFT_VERSION_03",
    )
    limits = [{"name": "envoy.filters.http.local_ratelimit", "typed_config": limit}]
    logs = [
        {"name": "file", "typed_config": _typed("access_loggers.file.v3.FileAccessLog", path=str(access_log))},
    ]
    router = {"name": "envoy.filters.http.router", "typed_config": _typed("filters.http.router.v3.Router")}
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "u"}}]}
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="web",
        route_config={"virtual_hosts": [host]},
        http_filters=[*(limits if access_log else []), router],
        access_log=logs if access_log else [],
    )
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    cluster = {
        "name": "u",
        "type": "STATIC",
        "connect_timeout": "5s",
        # Its default breaker takes 1,024 requests at once; a thousand connections need a little more.
        "circuit_breakers": {
            "thresholds": [{"max_connections": 8192, "max_pending_requests": 8192, "max_requests": 8192}]
        },
        "load_assignment": {
            "cluster_name": "u",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(upstream_port)}}]}],
        },
    }
    listener = {"name": "web", "address": _address(port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _uvicorn(name: str, module: str) -> Callable[[Stage, int], Started]:
    def start(stage: Stage, port: int) -> Started:
        argv = [
            stage.wheels.python, "-m", "uvicorn", "--app-dir", NAIVE, f"{module}:app",
            "--port", str(port), "--no-access-log", "--log-level", "warning",
        ]  # fmt: skip
        env = {"UPSTREAM": f"http://127.0.0.1:{stage.upstream_port}", "POOL": str(POOL)}
        return Started(stage.stand.start(name, argv, core=stage.stand.cores.subject, env=env))

    return start


PEERS = (
    Variant("nginx", "nginx, bare", nginx),
    Variant("haproxy", "HAProxy, bare", haproxy),
    Variant("nginx-full", "nginx, access log and rate limit", nginx_full, b"HTTP/1.1"),
    Variant("envoy", "Envoy, bare", envoy),
    Variant("envoy-full", "Envoy, access log and rate limit", envoy_full, b"HTTP/1.1"),
    Variant("traefik", "Traefik, bare", traefik),
    Variant("caddy", "Caddy, bare", caddy),
    Variant("fastapi-httpx", "FastAPI + httpx, bare", _uvicorn("fastapi-httpx", "fastapi_httpx")),
    Variant("fastapi-proxy-lib", "fastapi-proxy-lib, bare", _uvicorn("fastapi-proxy-lib", "proxy_lib")),
)


def versions(wheels: peers.Wheels) -> dict[str, str]:
    """Return the version that each program tells of itself, for those that are here."""
    asked = {
        "nginx": lambda: [peers.find("nginx"), "-v"],
        "haproxy": lambda: [peers.find("haproxy"), "-v"],
        "wrk": lambda: [peers.find("wrk"), "-v"],
        "caddy": lambda: [wheels.program("caddy"), "version"],
        "traefik": lambda: [wheels.program("traefik"), "version"],
        "envoy": lambda: [wheels.program("envoy"), "--version"],
    }
    found = {}
    for name, argv in asked.items():
        try:
            done = subprocess.run(argv(), capture_output=True, text=True, timeout=20, check=False)
        except peers.Missing:
            continue
        match = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        found[name] = match[0] if match else "unknown"
    locked = re.findall(r"^(fastapi|httpx|fastapi-proxy-lib|uvicorn)==(\S+)", peers.LOCK.read_text(), re.MULTILINE)
    return found | dict(locked)
