"""What single results amount to: the state of each component and of the fleet; pure."""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from services.health.model import ComponentHealth, HealthDetail, Observation, ReplicaHealth, Role, State

NOT_ASKED = "not_asked"
STALE = "stale"
NO_ADDRESS = "no_address"


def aggregate(
    observations: Iterable[Observation], *, expected: Collection[str], now: float, stale_after_s: float
) -> HealthDetail:
    """Return the state of everything at `now` (monotonic).

    A result older than `stale_after_s` counts as down, as does a service of `expected` that nothing is known of. The fleet is
    down when a required server is down or a service has no ready replica, degraded when an optional server or some replica is.
    """
    servers: dict[str, tuple[Role, ComponentHealth]] = {}
    services: dict[str, dict[str, ReplicaHealth]] = {name: {} for name in expected}
    for seen in observations:
        target = seen.target
        if target.role is Role.REPLICA:
            services.setdefault(target.component, {})[target.label] = _replica(seen, now, stale_after_s)
        else:
            found = _replica(seen, now, stale_after_s)
            servers[target.component] = target.role, ComponentHealth(**found.model_dump())
    states = [_weight(role, server.state) for role, server in servers.values()]
    components = {name: server for name, (_, server) in servers.items()}
    for name, replicas in services.items():
        components[name] = _service(replicas)
        states.append(components[name].state)
    return HealthDetail(state=worst(states), components=dict(sorted(components.items())))


def worst(states: Iterable[State]) -> State:
    """Return the worst of the states; none at all is up."""
    order = [State.UP, State.DEGRADED, State.DOWN]
    return max(states, key=order.index, default=State.UP)


def _weight(role: Role, state: State) -> State:
    return State.DEGRADED if role is Role.OPTIONAL and state is State.DOWN else state


def _service(replicas: dict[str, ReplicaHealth]) -> ComponentHealth:
    ready = sum(replica.state is State.UP for replica in replicas.values())
    if not ready:
        return ComponentHealth(state=State.DOWN, replicas=replicas, last_error=None if replicas else NO_ADDRESS)
    return ComponentHealth(state=State.UP if ready == len(replicas) else State.DEGRADED, replicas=replicas)


def _replica(seen: Observation, now: float, stale_after_s: float) -> ReplicaHealth:
    since = datetime.fromtimestamp(seen.since, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    result = seen.result
    if result is None:
        return ReplicaHealth(state=State.DOWN, since=since, last_error=NOT_ASKED)
    error = result.error or (STALE if now - result.at > stale_after_s else "")
    return ReplicaHealth(
        state=State.DOWN if error else State.UP,
        latency_ms=round(result.latency_s * 1000, 2),
        since=since,
        last_error=error or None,
    )
