"""The rules: what single results amount to."""

from hypothesis import given
from hypothesis import strategies as st

from services.health.domain.aggregate import aggregate
from services.health.model import HealthDetail, Observation, Result, Role, State, Target

NOW = 1000.0
STALE_AFTER_S = 5.0


def replica(service: str, number: int, error: str = "", *, age_s: float = 0.0) -> Observation:
    target = Target(service, Role.REPLICA, key=f"10.0.0.{number}:80", label=f"{service}-{number}")
    return Observation(target, Result(error, 0.0015, NOW - age_s), 0.0)


def server(name: str, role: Role, error: str = "", *, age_s: float = 0.0) -> Observation:
    return Observation(Target(name, role), Result(error, 0.0015, NOW - age_s), 0.0)


def judged(*seen: Observation, expected: tuple[str, ...] = ()) -> HealthDetail:
    return aggregate(seen, expected=expected, now=NOW, stale_after_s=STALE_AFTER_S)


def test_everything_up_is_up() -> None:
    found = judged(replica("users", 1), server("nats", Role.REQUIRED), server("redis", Role.OPTIONAL))
    assert found.state is State.UP
    assert found.components["users"].replicas is not None
    assert found.components["users"].replicas["users-1"].model_dump(exclude_none=True) == {
        "state": State.UP,
        "latency_ms": 1.5,
        "since": "1970-01-01T00:00:00Z",
    }


def test_a_required_server_down_is_down() -> None:
    found = judged(replica("users", 1), server("nats", Role.REQUIRED, "timeout"))
    assert (found.state, found.components["nats"].state) == (State.DOWN, State.DOWN)
    assert found.components["nats"].last_error == "timeout"


def test_redis_down_is_degraded() -> None:
    found = judged(replica("users", 1), server("redis", Role.OPTIONAL, "refused"))
    assert (found.state, found.components["redis"].state) == (State.DEGRADED, State.DOWN)


def test_some_replicas_down_is_degraded_and_none_ready_is_down() -> None:
    some = judged(replica("users", 1), replica("users", 2, "not_ready"))
    assert (some.state, some.components["users"].state) == (State.DEGRADED, State.DEGRADED)
    none = judged(replica("users", 1, "refused"), replica("users", 2, "not_ready"), replica("realtime", 1))
    assert (none.state, none.components["users"].state) == (State.DOWN, State.DOWN)
    assert none.components["realtime"].state is State.UP


def test_an_expected_service_without_an_address_is_down() -> None:
    found = judged(replica("users", 1), expected=("users", "realtime"))
    assert found.state is State.DOWN
    assert found.components["realtime"].state is State.DOWN
    assert found.components["realtime"].last_error == "no_address"


def test_a_service_that_is_there_without_being_expected_counts_too() -> None:
    assert judged(replica("mail", 1, "refused")).state is State.DOWN


def test_stale_results_and_targets_not_asked_yet_are_down() -> None:
    stale = judged(replica("users", 1, age_s=5.1))
    assert stale.state is State.DOWN
    assert stale.components["users"].replicas is not None
    assert stale.components["users"].replicas["users-1"].last_error == "stale"
    assert judged(replica("users", 1, age_s=4.9)).state is State.UP
    unasked = judged(Observation(Target("nats", Role.REQUIRED), None, 0.0))
    assert (unasked.state, unasked.components["nats"].last_error) == (State.DOWN, "not_asked")


def test_an_empty_fleet_is_up() -> None:
    assert judged().state is State.UP


errors = st.sampled_from(["", "", "refused", "timeout", "not_ready"])
ages = st.sampled_from([0.0, 0.0, 2.0, 60.0])
replicas = st.builds(
    lambda service, number, error, age_s: replica(service, number, error, age_s=age_s),
    st.sampled_from(["gateway", "users", "realtime"]),
    st.integers(1, 3),
    errors,
    ages,
)
servers = st.builds(
    lambda pair, error, age_s: server(*pair, error, age_s=age_s),
    st.sampled_from([("nats", Role.REQUIRED), ("postgres", Role.REQUIRED), ("redis", Role.OPTIONAL)]),
    errors,
    ages,
)
fleets = st.lists(replicas | servers, max_size=12, unique_by=lambda seen: (seen.target.component, seen.target.label))


def is_good(seen: Observation) -> bool:
    assert seen.result is not None
    return not seen.result.error and NOW - seen.result.at <= STALE_AFTER_S


@given(fleets)
def test_the_state_follows_the_rule_for_every_fleet(fleet: list[Observation]) -> None:
    services = {seen.target.component for seen in fleet if seen.target.role is Role.REPLICA}
    dead_service = any(
        not any(is_good(seen) for seen in fleet if seen.target.component == service) for service in services
    )
    dead_server = any(seen.target.role is Role.REQUIRED and not is_good(seen) for seen in fleet)
    found = judged(*fleet)
    if dead_service or dead_server:
        assert found.state is State.DOWN
    elif all(is_good(seen) for seen in fleet):
        assert found.state is State.UP
    else:
        assert found.state is State.DEGRADED
    assert set(found.components) == {seen.target.component for seen in fleet}


@given(fleets, st.randoms())
def test_the_order_of_results_changes_nothing(fleet: list[Observation], chance: object) -> None:
    shuffled = list(fleet)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert judged(*shuffled) == judged(*fleet)


@given(fleets, st.data())
def test_a_recovery_never_makes_it_worse(fleet: list[Observation], data: st.DataObject) -> None:
    if not fleet:
        return
    at = data.draw(st.integers(0, len(fleet) - 1))
    better = [*fleet]
    better[at] = Observation(fleet[at].target, Result("", 0.001, NOW), 0.0)
    order = [State.UP, State.DEGRADED, State.DOWN]
    assert order.index(judged(*better).state) <= order.index(judged(*fleet).state)


@given(fleets)
def test_keys_never_show(fleet: list[Observation]) -> None:
    assert "10.0.0." not in judged(*fleet).model_dump_json()
