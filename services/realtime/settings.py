"""What the realtime service can be told, `RH_REALTIME_...` and the shared names."""

from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.realtime.domain.conduct import Limits
from shared.settings import MEMORY, NatsUrl, Settings


class RealtimeSettings(Settings):
    """The limits are those of one replica."""

    model_config = SettingsConfigDict(env_prefix="RH_REALTIME_")
    service: ClassVar[str] = "realtime"

    nats_url: NatsUrl = Field(MEMORY, validation_alias="NATS_URL")
    # Sockets are told to go one after the other in this time; the server would then cut the rest at once.
    drain_wait_s: float = Field(1.5, ge=0, le=300, description="time to send clients away before the server stops")
    frames_per_s: float = Field(20, gt=0, le=10_000, description="frames of one connection, on average")
    frames_burst: int = Field(60, ge=1, le=10_000)
    rooms_max: int = Field(32, ge=1, le=1000, description="rooms of one connection")
    connections_per_user_max: int = Field(10, ge=1, le=10_000, description="sockets of one user, and as many streams")
    outbox_frames_max: int = Field(1000, ge=10, description="frames that may wait for one socket")
    outbox_events_max: int = Field(256, ge=10, description="events that may wait for one stream")
    outbox_bytes_max: int = Field(1024 * 1024, ge=128 * 1024, description="bytes that may wait for one listener")
    heartbeat_s: float = Field(15, gt=0, le=15, description="silence on a stream after which a comment is sent")

    @property
    def limits(self) -> Limits:
        return Limits(
            frames_per_s=self.frames_per_s,
            frames_burst=self.frames_burst,
            rooms_max=self.rooms_max,
            connections_per_user_max=self.connections_per_user_max,
            outbox_frames_max=self.outbox_frames_max,
            outbox_events_max=self.outbox_events_max,
            outbox_bytes_max=self.outbox_bytes_max,
        )
