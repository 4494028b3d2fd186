"""What `up` was asked for, checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev.errors import CannotRun
from dev.fleet import Fleet
from dev.service import OWN_SETTINGS
from dev.supervisor import REPLICAS_MAX

ENVIRONMENTS = ("development", "test", "production")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of `up`. `data_dir` None means the checkout's own folder."""

    port: int = 8080
    data_dir: Path | None = None
    ephemeral: bool = False
    replicas: Mapping[str, int] = field(default_factory=dict)
    detach: bool = False
    json: bool = False
    watch: bool = True
    forkserver: bool = True

    def arguments(self) -> dict[str, Any]:
        """The part that makes one fleet another: a second `up` must agree in it."""
        return {
            "port": self.port,
            "data_dir": str(self.data_dir) if self.data_dir else None,
            "ephemeral": self.ephemeral,
            "replicas": {name: count for name, count in sorted(self.replicas.items()) if count != 1},
        }


def parse_replicas(texts: Sequence[str], fleet: Fleet) -> dict[str, int]:
    """Read `users=2,realtime=2`, given once or more; the last word on a service counts."""
    found = {}
    for item in (item for text in texts for item in text.split(",") if item):
        name, count = parse_count(item)
        if fleet.service(name) is None:
            names = ", ".join(service.name for service in fleet.services)
            raise CannotRun(f"--replicas names {name!r}, which is no service: one of {names}.", exit_code=2)
        found[name] = count
    return found


def parse_count(item: str) -> tuple[str, int]:
    """Read `users=3`."""
    name, _, count = item.partition("=")
    if not count.isascii() or not count.isdigit() or not 1 <= int(count) <= REPLICAS_MAX:
        raise CannotRun(f"{item!r} is not SERVICE=COUNT with a count from 1 to {REPLICAS_MAX}.", exit_code=2)
    return name.strip(), int(count)


def common_settings(environ: Mapping[str, str], fleet: Fleet) -> dict[str, str]:
    """Check the caller's environment and return what all services take from it; CannotRun for a bad variable."""
    found = {}
    for name, allowed in (("ENVIRONMENT", ENVIRONMENTS), ("LOG_LEVEL", LOG_LEVELS)):
        if value := environ.get(name):
            if value not in allowed:
                raise CannotRun(f"{name} is {value!r}: set it to one of {', '.join(allowed)}, or unset it.")
            found[name] = value
    prefixes = {service.prefix for service in fleet.services}
    for name in sorted(name for name in environ if name.startswith("RH_")):
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            raise CannotRun(
                f"{name} belongs to no service ({', '.join(sorted(prefixes))}): unset it or correct its name."
            )
        if name.removeprefix(prefix) in OWN_SETTINGS:
            raise CannotRun(f"{name} is the runner's own to set: unset it.")
    return found
