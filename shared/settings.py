"""Settings: read once from the environment, checked, frozen; a bad or unknown variable is one clear sentence.

A service subclasses `Settings` with `env_prefix="RH_<NAME>_"`. Only ENVIRONMENT, LOG_LEVEL, NATS_URL, REDIS_URL and DATABASE_URL
have no prefix. Every variable X has a twin X_FILE, a file whose stripped content is the value.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

FILE_BYTES_MAX = 1024 * 1024
"""Of a file that holds a value; a longer one is refused, since half a value may be valid too."""

EXAMPLE_MARK = "example-only"
"""In every secret of `.env.example`: public, so good for a trial and nothing else."""


class SettingsError(Exception):
    """The environment does not describe a service that can start; the text says which variable and why, without its value."""


def url_of(*schemes: str) -> AfterValidator:
    """Return a validator for a masked URL of one of `schemes`; its errors never show the URL, since it may hold a password."""

    def check(value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            port_is_readable = parts.port is None or parts.port > 0
        except ValueError:
            port_is_readable = False
            parts = urlsplit("")
        if not port_is_readable or parts.scheme not in schemes:
            raise ValueError(f"must be a URL that begins with one of {', '.join(f'{s}://' for s in schemes)}")
        if parts.scheme != "memory" and not parts.hostname:
            raise ValueError("must name a host")
        return value

    return AfterValidator(check)


NatsUrl = Annotated[SecretStr, url_of("memory", "nats", "tls")]
RedisUrl = Annotated[SecretStr, url_of("memory", "redis", "rediss")]
DatabaseUrl = Annotated[SecretStr, url_of("memory", "postgresql", "postgres")]

MEMORY = SecretStr("memory://")


def read_value_file(path: str, *, name: str) -> str:
    """Return the value that a file holds. Raises SettingsError, which calls the file `name`."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name} cannot be read: {type(error).__name__}") from error
    if len(content) > FILE_BYTES_MAX:
        raise SettingsError(f"{name} has over {FILE_BYTES_MAX} bytes")
    value = text.strip()
    # A text of several lines keeps its first ones, for messages that count lines.
    return text.rstrip() if "\n" in value else value


class _FileTwins(PydanticBaseSettingsSource):
    """Reads X_FILE for every variable X; X itself wins where both are set."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = variable_of(self.settings_cls, field_name, field)
        path = os.environ.get(f"{name}_FILE")
        if path is None:
            return None, field_name, False
        return read_value_file(path, name=f"{name}_FILE"), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {}
        for field_name, field in self.settings_cls.model_fields.items():
            value, _, _ = self.get_field_value(field, field_name)
            if value is not None:
                found[field_name] = value
        return found


class Settings(BaseSettings):
    """What every service can be told. Subclasses set `env_prefix` and add their own fields, units in the names."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, populate_by_name=True)
    service: ClassVar[str] = ""

    environment: Literal["development", "test", "production"] = Field("development", validation_alias="ENVIRONMENT")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", validation_alias="LOG_LEVEL")
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535, description="0 takes any free port")
    replica: str = Field("", max_length=100, description="this process's name in logs, such as users-1")
    endpoints: str = Field(
        "", description="`name=host:port,...` or `file:///path.json`: where the fleet's replicas are"
    )
    body_bytes_max: int = Field(1024 * 1024, ge=1024)
    connections_max: int = Field(10_000, ge=1)
    drain_wait_s: float = Field(0.0, ge=0, le=300, description="time to go on serving after readiness turned false")
    drain_grace_s: float = Field(8.0, gt=0, le=300, description="time for what is in flight to finish after that")
    otlp_endpoint: str = Field("", description="where spans go as OTLP over HTTP; empty: nothing is recorded")

    @property
    def is_production(self) -> bool:
        return self.environment == "production"

    @property
    def replica_name(self) -> str:
        # In a container the host's name is the container's: replicas are told apart without being named.
        return self.replica or f"{self.service}-{socket.gethostname()[:32]}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _FileTwins(settings_cls)


def variable_of(settings: type[BaseSettings], field_name: str, field: FieldInfo) -> str:
    """Return the environment variable that a field is read from."""
    alias = field.validation_alias
    if isinstance(alias, str):
        return alias
    return f"{settings.model_config.get('env_prefix', '')}{field_name}".upper()


S = TypeVar("S", bound=Settings)


def load(settings: type[S], environ: Mapping[str, str] | None = None, *, serves: bool = True) -> S:
    """Read the settings from the process's environment.

    Raises SettingsError for an unknown `RH_` variable (pydantic's `extra` does not see the environment), for a value that
    does not fit, and for what production refuses: `memory://`, which a second replica would not share, and example secrets.
    A tool that only looks at the settings (`serves=False`) may do so where the servers are not known.
    """
    names = {variable_of(settings, name, field) for name, field in settings.model_fields.items()}
    known = names | {f"{name}_FILE" for name in names}
    unknown = sorted(name for name in (environ or os.environ) if name.upper().startswith("RH_") and name not in known)
    if unknown:
        raise SettingsError(f"unknown variable {', '.join(unknown)}; known ones are {', '.join(sorted(names))}")
    try:
        found = settings()
    except ValidationError as error:
        raise SettingsError(_sentence(settings, error)) from None
    if serves and found.is_production:
        for name, value in found:
            if isinstance(value, SecretStr) and (reason := _unfit_for_production(value.get_secret_value())):
                raise SettingsError(f"{variable_of(settings, name, settings.model_fields[name])} {reason}")
    return found


def _unfit_for_production(secret: str) -> str:
    if secret.startswith("memory://"):
        return "is memory://, which production refuses: give the address of a real server"
    if EXAMPLE_MARK in secret:
        return "holds a secret of the example file, which production refuses: make one of your own"
    return ""


def _sentence(settings: type[Settings], error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_input=False, include_url=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        field = settings.model_fields.get(name)
        reason = item["ctx"]["error"] if item["type"] == "value_error" else item["msg"]
        parts.append(f"{variable_of(settings, name, field) if field else name}: {reason}")
    return "; ".join(parts)
