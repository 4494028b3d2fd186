"""What the gateway can be told: its sockets, where the fleet is, its routes and whom it trusts."""

import sys
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.gateway.domain.config import ConfigError, Fault, parse_config
from services.gateway.domain.defaults import default_config
from services.gateway.model import Addresses, Auth, Cors, GatewayConfig, check_network, check_origin
from shared.endpoints import Endpoints, EndpointsError
from shared.settings import MEMORY, NatsUrl, RedisUrl, Settings, SettingsError, read_value_file

DEVELOPMENT_ORIGIN = "http://localhost:3000"


class GatewaySettings(Settings):
    """`RH_GATEWAY_` variables; `RH_GATEWAY_CONFIG_FILE` names a TOML file that replaces parts of the configuration."""

    model_config = SettingsConfigDict(env_prefix="RH_GATEWAY_")
    service: ClassVar[str] = "gateway"

    port: int = Field(8080, ge=0, le=65535, description="0 takes any free port")
    # Clients learn from each answer of this time that their connection ends; one that is cut later was idle.
    drain_wait_s: float = Field(1.0, ge=0, le=300, description="time to go on serving after readiness turned false")
    workers: int = Field(1, ge=1, le=64, description="processes that serve together; more than one needs Linux")
    fd: int | None = Field(None, ge=3, description="an inherited, listening public socket, served beside HOST:PORT")
    config_file: str = Field("", description="the file that the configuration is in, read again on SIGHUP")
    config: str = Field("", description="TOML that replaces parts of the platform's own configuration")
    lane: Literal["direct", "asgi"] = Field(
        "direct", description="asgi sends every request through the ASGI lane, which does the same at a higher cost"
    )
    authorities: str = Field("", description="`Host` values that are served, comma-separated; empty: all")
    origins: str = Field("", description="foreign origins whose pages are let in, comma-separated")
    allow: str = Field("", description="client addresses or networks that are served, comma-separated; empty: all")
    exempt: str = Field("", description="client addresses or networks that meet no rate limit, comma-separated")
    trusted_proxies: str = Field("", description="proxies in front whose forwarding headers are believed, likewise")
    nats_url: NatsUrl = Field(MEMORY, validation_alias="NATS_URL")
    redis_url: RedisUrl = Field(MEMORY, validation_alias="REDIS_URL")
    metrics_access: Literal["", "open", "signed_in", "admin"] = Field(
        "", description="who reads /metrics on the public side; empty: signed_in, in production admin"
    )

    admin_access: Literal["", "loopback_or_admin", "admin", "off"] = Field(
        "", description="who operates the gateway by /admin/gateway; empty: loopback_or_admin, in production admin"
    )

    @field_validator("config")
    @classmethod
    def _config_is_readable(cls, text: str, info: ValidationInfo) -> str:
        parse_config(text, default_config(is_production=False), info.data.get("config_file", ""))
        return text

    @field_validator("allow", "exempt", "trusted_proxies")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        for part in _listed(text):
            check_network(part)
        return text

    @field_validator("workers")
    @classmethod
    def _workers_can_share_a_port(cls, count: int) -> int:
        if count > 1 and not sys.platform.startswith("linux"):
            raise ValueError("more than one needs Linux: elsewhere one of them would get every connection")
        return count

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        for part in _listed(text):
            check_origin(part)
        return text

    @field_validator("endpoints")
    @classmethod
    def _endpoints_are_readable(cls, text: str) -> str:
        try:
            Endpoints(text)
        except EndpointsError as error:
            raise ValueError(str(error)) from None
        return text

    def read_config(self, text: str, file: str = "") -> GatewayConfig:
        """Return the configuration that a TOML text makes of the default one; faults name `file`. Raises ConfigError."""
        base = default_config(
            is_production=self.is_production,
            body_bytes_max=self.body_bytes_max,
            addresses=Addresses(
                allow=_listed(self.allow), exempt=_listed(self.exempt), trusted_proxies=_listed(self.trusted_proxies)
            ),
            cors=Cors(origins=tuple(sorted(self.origin_names))),
        )
        return parse_config(text, base, file)

    def read_config_file(self) -> GatewayConfig:
        """Return the configuration that is in its file now. Raises ConfigError."""
        if not self.config_file:
            raise ConfigError([Fault("RH_GATEWAY_CONFIG_FILE names no file, so there is nothing to read again")])
        try:
            text = read_value_file(self.config_file, name=self.config_file)
        except SettingsError as error:
            raise ConfigError([Fault(str(error))]) from None
        return self.read_config(text, self.config_file)

    @property
    def authority_names(self) -> frozenset[str]:
        return _names(self.authorities)

    @property
    def origin_names(self) -> frozenset[str]:
        """Foreign origins whose pages are let in; the gateway's own is always allowed."""
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
    def operated_by(self) -> Literal["loopback_or_admin", "admin", "off"]:
        """Who may use /admin/gateway."""
        return self.admin_access or ("admin" if self.is_production else "loopback_or_admin")

    @property
    def private_port(self) -> int | None:
        """The port beside the public socket, which only the fleet reaches; None where the one port is public."""
        return self.port if self.fd is not None and self.port else None


def _names(text: str) -> frozenset[str]:
    return frozenset(part.lower() for part in _listed(text))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))
