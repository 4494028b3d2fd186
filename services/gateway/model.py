"""What the gateway can be configured to do: routes, limits, and how each service behind it is treated."""

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Auth = Literal["public", "signed_in", "admin"]
Kind = Literal["http", "stream", "websocket"]
Priority = Literal["critical", "normal"]

OWN_PATHS = frozenset({"live", "ready", "metrics", "docs", "openapi.json", "admin"})
"""First segments that the gateway or every service's operators own; a route over them would publish what is private."""

BODY_BYTES_MAX = 1024 * 1024

_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+(?:/\*)?", re.ASCII)
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,31}://(?:[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _check_path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise ValueError("must look like /users (that path alone) or /users/* (that path and all below it)")
    segments = path.split("/")
    if segments[1] in OWN_PATHS:
        raise ValueError(f"/{segments[1]} is the gateway's own; choose another first segment")
    if any(segment in (".", "..") for segment in segments):
        raise ValueError("must not hold the segments . or ..")
    return path


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("must be lower-case letters, digits and -, at most 32, beginning with a letter")
    return name


def check_network(text: str) -> str:
    """Return the text of an address or network as it is. Raises ValueError."""
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"'{text[:60]}' is not an address or a network such as 10.0.0.0/8: {error}") from None
    return text


def check_origin(text: str) -> str:
    """Return an origin as browsers send it: `scheme://host[:port]` in lower case. Raises ValueError."""
    origin = text.strip().lower()
    if origin in ("*", "null"):
        raise ValueError(f"{origin} would let in every page; name each origin, such as https://app.example.com")
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"'{text[:60]}' is no origin; write scheme://host[:port] and nothing after it")
    scheme, _, host = origin.partition("://")
    if host.endswith(_DEFAULT_PORTS.get(scheme, "/")):
        raise ValueError(f"'{text[:60]}' names the port that browsers leave out; write {origin.rpartition(':')[0]}")
    return origin


Name = Annotated[str, AfterValidator(_check_name)]
Network = Annotated[str, AfterValidator(check_network)]
Origin = Annotated[str, AfterValidator(check_origin)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Route(_Frozen):
    """One row: which requests it takes, who may send them, where they go and within which limits.

    `path` without `/*` is that path alone; with it, that path and all below. `timeout_s` is the total for `http`; a `stream` has it
    until the answer's head and then `idle_timeout_s` between parts; a `websocket` has it for the handshake. `try_timeout_s` is the
    time one upstream has to begin its answer, after which another may be asked. `query_token` accepts the access token as `?token=`,
    for clients that cannot set headers (EventSource); `ticket` a ticket of `POST /auth/ticket` as `?ticket=`, once. A request takes
    `cost` from each of `limits`. When a service has more work than it can do, `critical` routes go first. `compress` allows gzip for
    answers that are not streams.
    """

    path: Annotated[str, AfterValidator(_check_path)]
    service: Name
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    auth: Auth
    kind: Kind = "http"
    timeout_s: float = Field(10.0, gt=0, le=600)
    try_timeout_s: float | None = Field(None, gt=0, le=600)
    idle_timeout_s: float = Field(60.0, gt=0, le=3600)
    body_bytes_max: int = Field(BODY_BYTES_MAX, ge=0, le=1024 * 1024 * 1024)
    query_token: bool = False
    ticket: bool = False
    limits: Annotated[tuple[Name, ...], Field(max_length=8)] = ()
    cost: int = Field(1, ge=1, le=1000)
    priority: Priority = "normal"
    compress: bool = True

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "Route":
        if self.kind == "websocket" and self.methods != ("GET",):
            raise ValueError('a websocket route opens with GET; write methods = ["GET"]')
        return self

    @property
    def prefix(self) -> str:
        """The path without its `/*`."""
        return self.path.removesuffix("/*")

    @property
    def covers_below(self) -> bool:
        return self.path.endswith("/*")


class Limit(_Frozen):
    """A rate limit (GCRA): `quota` requests at once, and that many again over every `window_s`.

    `by` says who shares one quota: each signed-in user, each client address, or everyone on the route. `applies_to` leaves out the
    others. `tiers` gives another quota to tokens whose `tier` claim (else their role) is named. `counts = "unauthorized"` takes
    from the quota only what was answered 401, such as failed log-ins. While the shared store is away each process spends its own
    part of the quota; what goes beyond is let in (`open`) or refused (`closed`), as `store_down` says.
    """

    name: Name
    by: Literal["user", "address", "route"]
    quota: int = Field(ge=1, le=10_000_000)
    window_s: float = Field(60.0, ge=1, le=86_400)
    applies_to: Literal["all", "anonymous", "signed_in"] = "all"
    tiers: dict[str, Annotated[int, Field(ge=1, le=10_000_000)]] = Field(default_factory=dict, max_length=32)
    counts: Literal["requests", "unauthorized"] = "requests"
    store_down: Literal["open", "closed"] = "open"

    @property
    def quotas(self) -> tuple[int, ...]:
        """Its own and those of its tiers."""
        return (self.quota, *self.tiers.values())


class BreakerPolicy(_Frozen):
    """When a circuit breaker opens: at least `volume_min` of the last `window` calls within `window_s` seconds, and of these the
    share `failure_rate` failed or the share `slow_rate` took longer than `slow_s`. Open for `open_s`, then `probes` trial calls.
    """

    window: int = Field(20, ge=1, le=1000)
    window_s: float = Field(10.0, gt=0, le=600)
    volume_min: int = Field(10, ge=1, le=1000)
    failure_rate: float = Field(0.5, gt=0, le=1)
    slow_s: float | None = Field(None, gt=0, le=600)
    slow_rate: float = Field(0.8, gt=0, le=1)
    open_s: float = Field(1.0, gt=0, le=60)
    probes: int = Field(2, ge=1, le=100)

    @model_validator(mode="after")
    def _can_open(self) -> "BreakerPolicy":
        if self.volume_min > self.window:
            raise ValueError(f"volume_min = {self.volume_min} is never reached; write at most window = {self.window}")
        return self


class ServicePolicy(_Frozen):
    """How a service is called.

    At most `in_flight_max` requests are under way at one replica from this process; what comes above is refused. While answers are
    late an `adaptive` service is given less. A request that may be repeated is tried `retries_max` more times, as long as repeats stay
    below `retry_share` of the requests. Answers with one of `failure_statuses` count as failures. A service's own 503 is by default
    none of them: it says that its database is down or it has enough to do, which leaving it alone would not mend. A replica that fails
    while others answer is left out; never more than `ejected_share_max` of them, never the last.
    """

    in_flight_max: int = Field(256, ge=1, le=10_000)
    adaptive: bool = True
    connect_timeout_s: float = Field(1.0, gt=0, le=30)
    retries_max: int = Field(2, ge=0, le=5)
    retry_share: float = Field(0.1, ge=0, le=1)
    failure_statuses: Annotated[tuple[Annotated[int, Field(ge=500, le=599)], ...], Field(max_length=16)] = (
        502,
        504,
    )
    ejected_share_max: float = Field(0.5, ge=0, lt=1)
    breaker: BreakerPolicy = BreakerPolicy()


class Addresses(_Frozen):
    """Client addresses: only those in `allow` are served where it names any; `exempt` ones meet no limit; `trusted_proxies` are
    believed when they say whom they forward for.
    """

    allow: tuple[Network, ...] = ()
    exempt: tuple[Network, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()


class Cors(_Frozen):
    """Pages of these origins (scheme://host[:port], exact) may call the API and open WebSockets."""

    origins: tuple[Origin, ...] = ()
    max_age_s: int = Field(600, ge=0, le=86_400)


class GatewayConfig(_Frozen):
    """The whole of what a configuration file can say; `services` holds only those treated otherwise than by default."""

    routes: tuple[Route, ...]
    limits: tuple[Limit, ...] = ()
    services: dict[Name, ServicePolicy] = Field(default_factory=dict)
    addresses: Addresses = Addresses()
    cors: Cors = Cors()
