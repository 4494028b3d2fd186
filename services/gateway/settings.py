"""What the gateway can be told: its sockets, where the fleet is, its routes and whom it trusts."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.gateway.domain import RouteTable, default_routes, parse_routes
from services.gateway.model import Auth
from shared.endpoints import Endpoints, EndpointsError
from shared.settings import Settings

DEVELOPMENT_ORIGIN = "http://localhost:3000"


class GatewaySettings(Settings):
    """`RH_GATEWAY_` variables; `RH_GATEWAY_ROUTES_FILE` names a TOML file that replaces the route table."""

    model_config = SettingsConfigDict(env_prefix="RH_GATEWAY_")
    service: ClassVar[str] = "gateway"

    port: int = Field(8080, ge=0, le=65535, description="0 takes any free port")
    # Clients learn from each answer of this time that their connection ends; one that is cut later was idle.
    drain_wait_s: float = Field(1.0, ge=0, le=300, description="time to go on serving after readiness turned false")
    fd: int | None = Field(None, ge=3, description="an inherited, listening public socket, served beside HOST:PORT")
    routes: str = Field("", description="a route table in TOML instead of the platform's own")
    authorities: str = Field("", description="`Host` values that are served, comma-separated; empty: all")
    origins: str = Field("", description="foreign WebSocket origins that are let in, comma-separated")
    metrics_access: Literal["", "open", "signed_in", "admin"] = Field(
        "", description="who reads /metrics on the public side; empty: signed_in, in production admin"
    )

    @field_validator("routes")
    @classmethod
    def _routes_are_readable(cls, text: str) -> str:
        if text:
            parse_routes(text)
        return text

    @field_validator("endpoints")
    @classmethod
    def _endpoints_are_readable(cls, text: str) -> str:
        try:
            Endpoints(text)
        except EndpointsError as error:
            raise ValueError(str(error)) from None
        return text

    @property
    def table(self) -> RouteTable:
        """The routes to serve."""
        if self.routes:
            return parse_routes(self.routes)
        return default_routes(is_production=self.is_production, body_bytes_max=self.body_bytes_max)

    @property
    def authority_names(self) -> frozenset[str]:
        return _names(self.authorities)

    @property
    def origin_names(self) -> frozenset[str]:
        """Foreign origins a WebSocket may come from; the gateway's own is always allowed."""
        named = _names(self.origins)
        return named if self.is_production or named else frozenset({DEVELOPMENT_ORIGIN})

    @property
    def metrics_auth(self) -> Auth:
        """Who may read /metrics on the public side."""
        if self.metrics_access == "open":
            return "public"
        if self.metrics_access == "":
            return "admin" if self.is_production else "signed_in"
        return self.metrics_access

    @property
    def private_port(self) -> int | None:
        """The port beside the public socket, which only the fleet reaches; None where the one port is public."""
        return self.port if self.fd is not None and self.port else None


def _names(text: str) -> frozenset[str]:
    return frozenset(filter(None, (part.strip().lower() for part in text.split(","))))
