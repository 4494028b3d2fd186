"""THE list of the fleet: its servers, its services, what each needs and gets. Pure data; compose and chart follow it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Infrastructure:
    """A server the services stand on, found by the URL in `variable`."""

    name: str
    variable: str
    schemes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Service:
    """One service: how it starts, which infrastructure must answer first, and what the runner hands it.

    `secret_files` maps a setting (without its prefix) to the name of the generated secret, `folders` to the name of a folder of the
    data, told as a file URL. `address_in` is the setting that is told the fleet's public address.
    """

    name: str
    module: str
    needs: tuple[str, ...] = ()
    secret_files: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    address_in: str = ""
    # The one service that answers the fleet's public port.
    public: bool = False

    @property
    def prefix(self) -> str:
        """The prefix of its settings, such as `RH_USERS_`."""
        return f"RH_{self.name.upper()}_"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Servers and services, in the order of the status table; `stop_order` names services only, servers follow."""

    infra: tuple[Infrastructure, ...]
    services: tuple[Service, ...]
    stop_order: tuple[str, ...]

    def service(self, name: str) -> Service | None:
        """Return the service of that name, if there is one."""
        return next((service for service in self.services if service.name == name), None)

    @property
    def public(self) -> Service | None:
        """The service behind the public port."""
        return next((service for service in self.services if service.public), None)


INFRA = (
    Infrastructure("nats", "NATS_URL", ("nats", "tls")),
    Infrastructure("valkey", "REDIS_URL", ("redis", "rediss")),
    Infrastructure("postgres", "DATABASE_URL", ("postgresql", "postgres")),
)

FLEET = Fleet(
    infra=INFRA,
    services=(
        Service(
            "users",
            "services.users",
            needs=("nats", "valkey", "postgres"),
            secret_files={"ADMIN_PASSWORD_FILE": "admin-password", "KEY_SEAL_FILE": "key-seal"},
            folders={"MAIL_URL": "mail"},
            address_in="PUBLIC_URL",
        ),
        Service("realtime", "services.realtime", needs=("nats",)),
        Service("compute", "services.compute", needs=("nats",)),
        # dev new: services
        Service("health", "services.health", needs=("nats", "valkey", "postgres")),
        Service("gateway", "services.gateway", needs=("nats", "valkey"), public=True),
    ),
    stop_order=(
        "gateway",
        "realtime",
        "compute",
        # dev new: stop_order
        "users",
        "health",
    ),
)
