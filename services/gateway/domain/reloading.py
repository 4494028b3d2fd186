"""The configuration in use, and how the file's takes its place: whole, or not at all."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict

from services.gateway.domain.config import ConfigError
from services.gateway.model import GatewayConfig, Route

LISTED_MAX = 50
"""Changes that a log line and an answer name of each kind; more are counted."""

log = structlog.get_logger()


class Changes(BaseModel):
    """What one configuration does otherwise than another, as text for a person."""

    model_config = ConfigDict(frozen=True)

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def listed(self) -> dict[str, list[str]]:
        """Return the kinds that there are, each cut to a length that a log line bears."""
        found = {}
        for kind, items in (("added", self.added), ("removed", self.removed), ("changed", self.changed)):
            more = len(items) - LISTED_MAX
            if items:
                found[kind] = [*items[:LISTED_MAX], *([f"and {more} more"] if more > 0 else [])]
        return found


def changes_between(old: GatewayConfig, new: GatewayConfig) -> Changes:
    """Say what is new, gone and other in `new`."""
    before, after = _parts(old), _parts(new)
    changed = (
        f"{name}: {', '.join(fields)}"
        for name, part in after.items()
        if name in before and (fields := list(_differences(before[name], part)))
    )
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(changed),
    )


def _parts(config: GatewayConfig) -> dict[str, BaseModel]:
    """Return all that can differ, under the names that messages give it."""
    return {
        **{_route_name(route): route for route in config.routes},
        **{f"limit {limit.name}": limit for limit in config.limits},
        **{f"service {name}": policy for name, policy in config.services.items()},
        "addresses": config.addresses,
        "cors": config.cors,
    }


def _route_name(route: Route) -> str:
    return f"route {route.path} [{', '.join(route.methods)}]"


def _differences(old: BaseModel, new: BaseModel) -> Iterator[str]:
    before: dict[str, Any] = old.model_dump()
    for key, value in new.model_dump().items():
        if value != before[key]:
            yield f"{key} {_text(before[key])} -> {_text(value)}"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)


class Configuration:
    """What is served now. `swap` must make all that another configuration needs before it puts any of it to use."""

    def __init__(self, used: GatewayConfig, read: Callable[[], GatewayConfig]) -> None:
        """`read` returns the file's configuration of the moment or raises ConfigError; it may block."""
        self.used = used
        self.swap: Callable[[GatewayConfig], None] = lambda _: None
        self._read = read
        self._wanted = asyncio.Event()
        self._lock = asyncio.Lock()

    async def reload(self) -> Changes:
        """Serve by the file as it is now. Raises ConfigError, and goes on as before."""
        async with self._lock:
            # On a thread: a file of a thousand routes is read in some 50 ms, in which nobody else would be served.
            config = await asyncio.to_thread(self._read)
            changes = changes_between(self.used, config)
            if changes or config != self.used:
                self.swap(config)
                self.used = config
        log.info("config_reloaded", changes=changes.listed())
        return changes

    def want(self) -> None:
        """Ask for a reload soon; what is asked for several times at once is done once. Safe in a signal's handler on the loop."""
        self._wanted.set()

    async def watch(self) -> None:
        """Reload each time that is asked for; a service runs it as a background task."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.reload()
            except ConfigError as error:
                log.warning("config_refused", faults=error.lines, in_use="the configuration of before")
