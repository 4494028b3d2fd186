"""What a route is: one validated row of the gateway's table."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Auth = Literal["public", "signed_in", "admin"]
Kind = Literal["http", "stream", "websocket"]

OWN_PATHS = frozenset({"live", "ready", "metrics"})
"""First segments that every service answers to its operators; a route over them would publish what is private."""

BODY_BYTES_MAX = 1024 * 1024

_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+(?:/\*)?", re.ASCII)
_SERVICE = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)


def _check_path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise ValueError("must look like /users (that path alone) or /users/* (that path and all below it)")
    segments = path.split("/")
    if segments[1] in OWN_PATHS:
        raise ValueError(f"/{segments[1]} is the gateway's own; choose another first segment")
    if any(segment in (".", "..") for segment in segments):
        raise ValueError("must not hold the segments . or ..")
    return path


def _check_service(name: str) -> str:
    if not _SERVICE.fullmatch(name):
        raise ValueError("must be a service's name: lower-case letters, digits and -, at most 32")
    return name


class Route(BaseModel):
    """One row: which requests it takes, who may send them, where they go and within which limits.

    `path` without `/*` is that path alone; with it, that path and all below. `timeout_s` is the total for `http`; a `stream` has it
    until the answer's head and then `idle_timeout_s` between parts; a `websocket` has it for the handshake. `query_token` accepts the
    access token as `?token=`, for clients that cannot set headers (EventSource).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(_check_path)]
    service: Annotated[str, AfterValidator(_check_service)]
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    auth: Auth
    kind: Kind = "http"
    timeout_s: float = Field(10.0, gt=0, le=600)
    idle_timeout_s: float = Field(60.0, gt=0, le=3600)
    body_bytes_max: int = Field(BODY_BYTES_MAX, ge=0, le=1024 * 1024 * 1024)
    query_token: bool = False

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
