"""What health can be told: `RH_HEALTH_...` and the addresses of the infrastructure."""

from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import DatabaseUrl, NatsUrl, RedisUrl, Settings

EXPECTED = (
    "gateway",
    "users",
    "realtime",
    "compute",
    # dev new: expected
)
"""The fleet but for health itself."""


class HealthSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="RH_HEALTH_")
    service: ClassVar[str] = "health"

    nats_url: NatsUrl | None = Field(None, validation_alias="NATS_URL")
    redis_url: RedisUrl | None = Field(None, validation_alias="REDIS_URL")
    database_url: DatabaseUrl | None = Field(None, validation_alias="DATABASE_URL")
    services: str = Field(
        ",".join(EXPECTED),
        pattern=r"^([a-z][a-z0-9-]{0,31}(,[a-z][a-z0-9-]{0,31})*)?$",
        description="services that the fleet must have, separated by commas; one without a replica is down",
    )
    probe_every_s: float = Field(1.0, ge=0.05, le=60)
    probe_timeout_s: float = Field(1.0, ge=0.05, le=10, description="of one probe")
    stale_after_s: float = Field(5.0, ge=0.1, le=300, description="an older result counts as down")

    @property
    def expected(self) -> tuple[str, ...]:
        return tuple(filter(None, self.services.split(",")))
