"""What compute takes and answers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

N_MAX = 5_000_000
TASKS_MAX = 100
LIMIT_MAX = 20
BLOCKING_MS_MAX = 2000


class CpuWork(BaseModel):
    """How far to count primes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: Annotated[int, Field(strict=True, ge=1, le=N_MAX, description="primes below this are counted", examples=[20000])]


class CpuAnswer(BaseModel):
    """The count, and how it came about."""

    n: int
    primes: int
    duration_ms: Annotated[float, Field(description="time of the count itself, measured in the worker")]
    worker_pid: Annotated[int, Field(description="the process that counted")]
    queue_ms: Annotated[float, Field(description="time until a worker was free")]


class AsyncDemo(BaseModel):
    """What a bounded gather did; every number is observed."""

    tasks: int
    limit: int
    duration_ms: float
    serial_ms: Annotated[float, Field(description="the waits one after another: the sum of what each took")]
    max_in_flight: Annotated[int, Field(description="the most waits seen under way at once")]


class BlockingDemo(BaseModel):
    """What a blocking call in a thread did to the event loop."""

    ms: int
    duration_ms: float
    loop_lag_ms_max: Annotated[float, Field(description="the latest the event loop came back meanwhile")]
    thread: Annotated[str, Field(description="the thread that was blocked")]
