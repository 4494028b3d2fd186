"""What health knows and answers."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class State(StrEnum):
    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"


class Role(Enum):
    """What the loss of a target means: a service lives while one replica does; NATS and PostgreSQL must be there; Redis may go."""

    REPLICA = "replica"
    REQUIRED = "required"
    OPTIONAL = "optional"


@dataclass(frozen=True, slots=True)
class Target:
    """Something that is asked. `key` tells replicas of one component apart and is never shown, `label` is what is shown."""

    component: str
    role: Role
    key: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One answer, or none: `error` is a short word, empty when all is well; `at` on the monotonic clock."""

    error: str
    latency_s: float
    at: float


@dataclass(frozen=True, slots=True)
class Observation:
    """The last result of a target (None: not asked yet) and since when, in epoch seconds, it has been in this state."""

    target: Target
    result: Result | None
    since: float


class ProbeFailed(Exception):
    """The target did not answer as it should; `kind` is a short word without any address."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Health(_Answer):
    """The state of the whole fleet."""

    state: State


Since = Annotated[str | None, Field(description="when it came into this state, RFC 3339")]
LatencyMs = Annotated[float | None, Field(description="of the last round trip")]
LastError = Annotated[str | None, Field(description="one word, such as `refused`, `timeout`, `not_ready`")]


class ReplicaHealth(_Answer):
    """One process of a service."""

    state: State
    latency_ms: LatencyMs = None
    since: Since = None
    last_error: LastError = None


class ComponentHealth(_Answer):
    """A service with its replicas, or a server (`nats`, `redis`, `postgres`)."""

    state: State
    latency_ms: LatencyMs = None
    since: Since = None
    last_error: LastError = None
    replicas: Annotated[dict[str, ReplicaHealth] | None, Field(description="of a service; absent for a server")] = None


class HealthDetail(_Answer):
    """The state of every part."""

    state: State
    components: dict[str, ComponentHealth]
