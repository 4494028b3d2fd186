"""What an operator may see of one worker's data path and do to it; all workers answer for themselves through `Siblings`."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import orjson

from services.gateway.domain.config import ConfigError
from services.gateway.domain.limiting import Limiter
from services.gateway.domain.reloading import Configuration
from services.gateway.lane.attempt import Replica
from services.gateway.lane.call import Call
from services.gateway.lane.direct import Direct
from services.gateway.lane.exchange import Exchange
from services.gateway.lane.pool import Pool
from services.gateway.lane.sweeper import Sweeper
from services.gateway.lane.upstream import Upstream, held_of, text_of
from services.gateway.lane.upstreams import Upstreams
from services.gateway.lane.websocket import WebSocketProxy
from shared.breaker import State
from shared.endpoints import Address
from shared.errors import Conflict, FieldError, InvalidInput, NotFound
from shared.log import mask

LISTED_MAX = 100
"""Requests under way that one worker lists, the oldest first; more are counted."""

PATH_CHARS_MAX = 200

Done = dict[str, Any]
"""What an action did: the states `before` and `after`, or the `changes`."""


class Operating:
    """One worker's part. Methods raise Problem and return what JSON can say; names of services and replicas must be known."""

    def __init__(
        self,
        upstreams: Upstreams,
        configuration: Configuration,
        limiter: Limiter,
        sweeper: Sweeper,
        websockets: WebSocketProxy,
        pool: Pool,
    ) -> None:
        self._upstreams = upstreams
        self._configuration = configuration
        self._limiter = limiter
        self._sweeper = sweeper
        self._websockets = websockets
        self._pool = pool
        self._known: Mapping[str, Callable[..., Any]] = {
            method.__name__: method
            for method in (
                self.services,
                self.limits,
                self.in_flight,
                self.held,
                self.open_breaker,
                self.close_breaker,
                self.auto_breaker,
                self.drain,
                self.undrain,
                self.reload,
            )
        }

    async def answer(self, payload: bytes) -> bytes:
        """Answer a sibling (see Siblings.on)."""
        return orjson.dumps(await self.do(**orjson.loads(payload)))

    async def do(self, name: str, **arguments: Any) -> Any:
        """Call one of the methods below by its name. Raises what that does."""
        found = self._known[name](**arguments)
        return await found if isinstance(found, Awaitable) else found

    # What there is.

    def services(self) -> dict[str, Any]:
        """Return every service with its breaker, load and replicas, and the connections kept to these."""
        found = self._upstreams.describe()
        for upstream in self._upstreams:
            for replica, shown in zip(upstream.replicas, found[upstream.name]["replicas"], strict=True):
                shown["connections"] = self._pool.count(replica.address)
        return found

    def limits(self) -> dict[str, Any]:
        """Return what this worker holds of each rate limit."""
        return self._limiter.describe()

    def in_flight(self) -> dict[str, Any]:
        """Return the requests under way: how many, and the oldest of them. Never a query: tokens may be there."""
        now = time.monotonic()
        items: list[tuple[Call, str, Address | None]] = [
            *((item.call, item.service, item.address) for item in self._sweeper if isinstance(item, Direct | Exchange)),
            *((item.call, *where) for item, where in self._websockets.open.items()),
        ]
        items.sort(key=lambda item: item[0].started_at)
        return {"count": len(items), "requests": [_shown(*item, now) for item in items[:LISTED_MAX]]}

    def held(self) -> dict[str, Any]:
        """Return what is held by hand: what `hold` makes of it in another worker is the same."""
        breakers = [[upstream.name, "", upstream.held.value] for upstream in self._upstreams if upstream.held]
        for upstream in self._upstreams:
            for replica in upstream.replicas:
                held = held_of(replica.breaker)
                if held is not None and held is not upstream.held:
                    breakers.append([upstream.name, text_of(replica.address), held.value])
        return {
            "breakers": breakers,
            "drained": [
                [upstream.name, text_of(replica.address)]
                for upstream in self._upstreams
                for replica in upstream.replicas
                if replica.is_drained
            ],
        }

    # What can be done.

    def hold(self, held: Mapping[str, Any]) -> None:
        """Hold what another worker holds; what is not known here is left alone."""
        known = {upstream.name: upstream for upstream in self._upstreams}
        for service, address, state in held["breakers"]:
            if service in known and not address:
                known[service].hold(State(state))
        for service, address, state in held["breakers"]:
            for replica in known[service].replicas if service in known else ():
                if text_of(replica.address) == address:
                    known[service].hold(State(state), replica.address)
        for upstream in self._upstreams:
            for replica in upstream.replicas:
                if [upstream.name, text_of(replica.address)] in held["drained"]:
                    upstream.drain(replica.address)

    def open_breaker(self, service: str, address: str = "") -> Done:
        """Hold the breakers of a service, or of one replica, open: what is theirs is refused until another is said."""
        return self._hold(State.OPEN, service, address)

    def close_breaker(self, service: str, address: str = "") -> Done:
        """Hold them closed, however much fails."""
        return self._hold(State.CLOSED, service, address)

    def auto_breaker(self, service: str, address: str = "") -> Done:
        """Ask again, whatever was before; from here on the breakers decide, a single replica's as its service's do."""
        return self._hold(None, service, address)

    def _hold(self, state: State | None, service: str, text: str) -> Done:
        upstream = self._of(service)
        if not text:
            before = _held_text(upstream.state, upstream.held)
            upstream.hold(state)
            return {"before": before, "after": _held_text(upstream.state, upstream.held)}
        breaker = _replica_in(upstream, text).breaker
        if upstream.held is State.OPEN:
            raise Conflict(
                f"all breakers of {service} are held open; POST breakers/{service}/auto, then say it of {text[:100]}"
            )
        before = _held_text(breaker.state, held_of(breaker))
        upstream.hold(state, _replica_in(upstream, text).address)
        return {"before": before, "after": _held_text(breaker.state, held_of(breaker))}

    def drain(self, service: str, address: str, *, force: bool = False) -> Done:
        """Send a replica nothing new; what is under way there ends by itself. Raises Conflict where it is the last, without `force`."""
        upstream = self._of(service)
        wanted = _replica_in(upstream, address).address
        others = [item for item in upstream.replicas if item.address != wanted and not item.is_drained]
        if not others and not force:
            raise Conflict(
                f"{address} is the last replica of {service} that is asked; ?force=true drains it all the same"
            )
        before = _drained_text(upstream, wanted)
        upstream.drain(wanted)
        return {"before": before, "after": _drained_text(upstream, wanted)}

    def undrain(self, service: str, address: str) -> Done:
        """Send a replica requests again."""
        upstream = self._of(service)
        wanted = _replica_in(upstream, address).address
        before = _drained_text(upstream, wanted)
        upstream.undrain(wanted)
        return {"before": before, "after": _drained_text(upstream, wanted)}

    async def reload(self) -> Done:
        """Put the configuration's file to use, as SIGHUP does. Return the changes. Raises InvalidInput with every fault."""
        try:
            changes = await self._configuration.reload()
        except ConfigError as error:
            raise InvalidInput(
                "the configuration cannot be used; the one of before stays",
                errors=[FieldError("file", line) for line in error.lines],
            ) from None
        return {"changes": changes.listed()}

    def _of(self, service: str) -> Upstream:
        for upstream in self._upstreams:
            if upstream.name == service:
                return upstream
        raise NotFound(f"no route leads to a service {service[:60]}")


def _replica_in(upstream: Upstream, text: str) -> Replica:
    for replica in upstream.replicas:
        if text_of(replica.address) == text:
            return replica
    known = ", ".join(text_of(replica.address) for replica in upstream.replicas) or "none"
    raise NotFound(f"the service {upstream.name} has no replica {text[:100]}; its replicas: {known}"[:1000])


def _held_text(state: State, held: State | None) -> str:
    return f"held {state.value}" if held is state else state.value


def _drained_text(upstream: Upstream, address: Address) -> str:
    drained: Iterable[Address] = (replica.address for replica in upstream.replicas if replica.is_drained)
    return "drained" if address in drained else "asked"


def _shown(call: Call, service: str, address: Address | None, now: float) -> dict[str, Any]:
    waits_at = "the service" if address else "the gateway"
    return {
        "request_id": call.request_id,
        "kind": call.kind,
        "method": call.method,
        # Before it is cut: half a token is known as one no more.
        "path": mask(call.path)[:PATH_CHARS_MAX],
        "route": call.route,
        "service": service,
        "upstream": text_of(address),
        "client": call.client.address,
        "subject": call.subject,
        "age_s": round(now - call.started_at, 3),
        "phase": "answering" if call.status else f"waits at {waits_at}",
    }
