"""Which names a new service may have: one word is its folder, its path at the gateway, its host name and its settings' prefix."""

import keyword
import re

from dev.errors import CannotRun
from dev.fleet import Fleet

CORE = frozenset({"gateway", "users", "realtime", "compute", "health"})
"""What the platform is made of: never taken out."""

_NAME = re.compile(r"[a-z][a-z0-9]{1,30}", re.ASCII)
_ROOMS = frozenset({"shared", "services", "dev", "tests", "redis"})
_PATHS = frozenset(
    {"admin", "auth", "channels", "console", "docs", "events", "jobs", "live", "metrics", "no", "ready", "sse"}
    | {"status", "stream", "tasks", "ws"}
)
"""First words of paths that are the platform's own, or will be; `/no/...` is what tests take for a path that is not there."""


def check_name(name: str, fleet: Fleet) -> None:
    """Refuse a name that cannot be a service's. Raises CannotRun."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise CannotRun(
            f"{name!r} cannot name a service: take 2 to 31 letters a-z and digits, a letter first, no word of Python's own.",
            exit_code=2,
        )
    if fleet.service(name) or name in {server.name for server in fleet.infra}:
        raise CannotRun(f"{name} is in the fleet already: choose another name.", exit_code=2)
    if name in _ROOMS | _PATHS:
        raise CannotRun(f"{name} means something else in this house: choose another name.", exit_code=2)


def check_removable(name: str, fleet: Fleet) -> None:
    """Refuse to take out what is no service, or one of the five. Raises CannotRun."""
    if name in CORE:
        raise CannotRun(f"{name} is one of the five that the platform is made of: it stays.", exit_code=2)
    if fleet.service(name) is None:
        added = ", ".join(service.name for service in fleet.services if service.name not in CORE)
        raise CannotRun(f"There is no service {name}; added ones: {added or 'none'}.", exit_code=2)
