"""Our gateway as a row of the comparison: a real process, set by its environment as any other deployment."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.testing.tokens import TokenMint
from tests.bench.gateways import Stage, Started, Variant
from tests.bench.processes import ROOT

SERVICE = "bench"
JWKS_PATH = "/.well-known/jwks.json"
REQUEST_MARK = b'"event":"request"'
TOKEN_LASTS_S = 6 * 3600.0
QUOTA = 10_000_000
"""A minute's quota that no load here reaches, so that each request is counted and none refused."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of the gateway is switched on, and how many routes it knows; `env` adds variables of its own."""

    is_all_on: bool = True
    routes: int = 1
    env: Mapping[str, str] = field(default_factory=dict)


def configuration(shape: Shape) -> str:
    """Return the gateway's TOML: the measured route `/v1/*` last, so that all others lie before it; `/bulk/*` takes 1 GiB."""
    limits = '["each-user", "each-address"]' if shape.is_all_on else "[]"
    auth = "signed_in" if shape.is_all_on else "public"
    rows = [f"/other{number}/*" for number in range(shape.routes - 1)] + ["/v1/*"]
    routes = "".join(
        f"""
[[routes]]
path = "{path}"
service = "{SERVICE}"
methods = ["GET", "POST"]
auth = "{auth}"
limits = {limits}
timeout_s = 30
"""
        for path in rows
    )
    bulk = f"""
[[routes]]
path = "/bulk/*"
service = "{SERVICE}"
methods = ["GET", "POST"]
auth = "{auth}"
timeout_s = 600
body_bytes_max = {1024**3}
compress = false
"""
    quotas = "".join(
        f"""
[[limits]]
name = "{name}"
by = "{by}"
quota = {QUOTA}
window_s = 60
"""
        for name, by in (("each-user", "user"), ("each-address", "address"))
    )
    # A thousand connections may all have a request under way.
    service = f"\n[services.{SERVICE}]\nin_flight_max = 4096\n"
    return routes + bulk + (quotas if shape.is_all_on else "") + service


def environment(shape: Shape, *, port: int, upstream_port: int, redis_url: str) -> dict[str, str]:
    """Return the variables of the process."""
    upstream = f"127.0.0.1:{upstream_port}"
    found = {
        "ENVIRONMENT": "test",
        "LOG_LEVEL": "INFO" if shape.is_all_on else "WARNING",
        "RH_GATEWAY_PORT": str(port),
        "RH_GATEWAY_REPLICA": "gateway-1",
        "RH_GATEWAY_DRAIN_WAIT_S": "0",
        # The upstream publishes the keys of our tokens as the users service would.
        "RH_GATEWAY_ENDPOINTS": f"{SERVICE}={upstream},users={upstream}",
        "RH_GATEWAY_CONFIG": configuration(shape),
    }
    if redis_url:
        found["REDIS_URL"] = redis_url
    return {**found, **shape.env}


def variant(name: str, title: str, shape: Shape) -> Variant:
    """Return a row that starts our gateway in a shape."""

    def start(stage: Stage, port: int) -> Started:
        env = environment(shape, port=port, upstream_port=stage.upstream_port, redis_url=stage.redis_url)
        running = stage.stand.start(
            name, [sys.executable, "-m", "services.gateway"], core=stage.stand.cores.subject, env=env, cwd=ROOT
        )
        return Started(running, running.log if shape.is_all_on else None)

    return Variant(
        name, title, start, log_mark=REQUEST_MARK if shape.is_all_on else b"", is_ours=True, is_all_on=shape.is_all_on
    )


VARIANTS = (
    variant("ours-bare", "Roundhouse, bare", Shape(is_all_on=False)),
    variant("ours-all", "Roundhouse, everything on, each request logged", Shape()),
)
"""A further lane is one more row here, with its variable in `env`."""


class Caller:
    """Who sends the load: a signed-in user whose tokens the gateway verifies with the published key."""

    def __init__(self) -> None:
        self._mint = TokenMint()
        self.authorization = f"Bearer {self._mint.token(lasts_s=TOKEN_LASTS_S)}"

    def documents(self) -> dict[str, str]:
        """Return what the upstream publishes of the issuer, JSON by path."""
        key = ",".join(f'"{name}":"{value}"' for name, value in self._mint.jwk().items())
        return {JWKS_PATH: f'{{"keys":[{{{key}}}]}}'}

    def forged(self) -> str:
        """Return a header of the same key id, signed by somebody else."""
        return f"Bearer {TokenMint().token(lasts_s=TOKEN_LASTS_S)}"
