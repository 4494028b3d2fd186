"""What compute can be told: `RH_COMPUTE_...`."""

from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import MEMORY, NatsUrl, Settings

QUEUE_FACTOR = 4
"""Jobs in the pool, running and waiting together, per slot where nothing else is set."""


class ComputeSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="RH_COMPUTE_")
    service: ClassVar[str] = "compute"

    nats_url: NatsUrl = Field(MEMORY, validation_alias="NATS_URL")
    slots: int = Field(0, ge=0, le=256, description="child processes; 0: as many as the CPUs this process may use")
    queue_max: int = Field(0, ge=0, le=10_000, description="jobs running and waiting together; 0: 4 for each slot")
    job_timeout_s: float = Field(10.0, gt=0, le=600, description="longest a job may wait and run together")
    threads: int = Field(8, ge=1, le=64, description="threads for blocking calls")

    def queue_max_of(self, slots: int) -> int:
        """Return the bound for a pool of so many slots."""
        return self.queue_max or QUEUE_FACTOR * slots
