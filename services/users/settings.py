"""The settings of the users service."""

from email.utils import parseaddr
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.users.domain.mail_text import TOKEN_MARK
from services.users.model.mail_url import check_mail_url
from services.users.model.text import normalise_email
from shared.settings import MEMORY, DatabaseUrl, NatsUrl, RedisUrl, Settings

SEAL_CHARS_MIN = 16
DEVELOPMENT_ORIGIN = "http://localhost:3000"
NOBODY = "Roundhouse <no-reply@roundhouse.invalid>"


class UsersSettings(Settings):
    """Read from `RH_USERS_...`; the URLs of the infrastructure have no prefix."""

    model_config = SettingsConfigDict(env_prefix="RH_USERS_")
    service: ClassVar[str] = "users"

    nats_url: NatsUrl = Field(MEMORY, validation_alias="NATS_URL")
    redis_url: RedisUrl = Field(MEMORY, validation_alias="REDIS_URL")
    database_url: DatabaseUrl = Field(MEMORY, validation_alias="DATABASE_URL")
    database_connections_max: int = Field(10, ge=1, le=200)

    key_seal: SecretStr = Field(
        SecretStr(""), validate_default=True, description="opens the signing keys; needed with PostgreSQL"
    )
    admin_password: SecretStr | None = Field(
        None, min_length=8, max_length=128, description="of the first admin, made where none is"
    )
    admin_email: str = Field("admin@roundhouse.invalid", max_length=254)

    require_if_match: bool = Field(False, description="changes without If-Match are 428")
    access_token_lasts_s: int = Field(600, ge=10, le=3600)
    key_lasts_days: float = Field(30, gt=0, le=3650, description="a signing key signs so long, then the next one does")
    key_ahead_s: float = Field(300, ge=1, le=86_400, description="a key is published so long before it signs")
    session_lasts_s: float = Field(30 * 24 * 3600, ge=60, description="from the log-in; refreshing does not extend it")
    origins: str = Field(
        "", description="foreign origins whose pages may use the refresh cookie, comma-separated, as for the gateway"
    )
    failed_logins_max: int = Field(100, ge=1, description="of one client address in the window")
    failed_logins_window_s: float = Field(600, ge=1)

    deleted_kept_days: float = Field(30, gt=0, le=3650, description="a deleted user can be restored so long")
    cleaning_every_s: float = Field(
        300, ge=0.01, description="between two rounds of forgetting what is over, on average"
    )
    audit_kept_days: float = Field(365, gt=0, le=36500, description="of the audit log")

    account_failures_max: int = Field(10, ge=1, description="failed log-ins of one account until it is locked")
    account_lock_s: float = Field(60, gt=0, description="the first lock; each further failure doubles it")
    account_lock_max_s: float = Field(900, gt=0)

    password_score_min: int = Field(
        2,
        ge=0,
        le=4,
        description="of new passwords, by zxcvbn: 1 is 10^3 guesses, 2 10^6, 3 10^8, 4 10^10; 0 asks nothing",
    )

    mail_url: SecretStr = Field(
        SecretStr(""), description="where mails go: smtp://, smtps:// or file:///folder; empty: none is sent"
    )
    mail_from: str = Field(NOBODY, max_length=320, validate_default=True, description="needed with a mail server")
    mail_link_verify: str = Field(
        "", max_length=500, description="the page that verifies an address, with {token} where the token goes"
    )
    mail_link_reset: str = Field("", max_length=500, description="the page that sets a new password, likewise")
    mails_per_hour_max: int = Field(5, ge=1, description="of a kind, to one account and to one address")
    public_url: str = Field(
        "http://127.0.0.1:8080", max_length=500, description="the gateway's address, as mails tell it"
    )

    cache_mib: int = Field(32, ge=1, le=4096, description="of records kept in each process for reading")
    cache_ttl_s: float = Field(30, ge=0.1, le=3600, description="records are read again after so long")
    cache_shared: bool = Field(False, description="records are kept in Redis too, for all replicas")
    stale_max_s: float = Field(
        300, ge=0, le=86_400, description="records are answered so long while PostgreSQL is away"
    )

    hash_memory_kib: int = Field(19_456, ge=8, le=1024 * 1024)
    hash_passes: int = Field(2, ge=1, le=20)

    @field_validator("key_seal")
    @classmethod
    def _require_seal(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        database_url = info.data.get("database_url", MEMORY).get_secret_value()
        length = len(value.get_secret_value())
        if length < SEAL_CHARS_MIN and (length or not database_url.startswith("memory:")):
            raise ValueError(f"is needed, with at least {SEAL_CHARS_MIN} characters, to seal the signing keys")
        return value

    @field_validator("mail_url")
    @classmethod
    def _check_mail_url(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            check_mail_url(value.get_secret_value())
        return value

    @field_validator("mail_from")
    @classmethod
    def _check_mail_from(cls, value: str, info: ValidationInfo) -> str:
        url = info.data.get("mail_url", SecretStr("")).get_secret_value()
        if value == NOBODY and url.startswith("smtp"):
            raise ValueError("is needed with a mail server: an address it sends for, such as Us <us@example.com>")
        if not value.isprintable():
            raise ValueError("must be one line")
        if not normalise_email(parseaddr(value)[1]).isascii():
            # Else a server would have to take such letters for every mail.
            raise ValueError("must be an ASCII address")
        return value

    @field_validator("mail_link_verify", "mail_link_reset")
    @classmethod
    def _check_link(cls, value: str) -> str:
        if value and (value.count(TOKEN_MARK) != 1 or not _is_web_url(value)):
            raise ValueError(f"must be an http:// or https:// URL with {TOKEN_MARK} in it once")
        return value

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str) -> str:
        if not _is_web_url(value) or "?" in value or "#" in value:
            raise ValueError("must be an http:// or https:// URL without a query")
        return value.rstrip("/")

    @property
    def origin_names(self) -> frozenset[str]:
        """Foreign origins whose pages may use the refresh cookie; our own always may."""
        named = frozenset(filter(None, (part.strip().lower() for part in self.origins.split(","))))
        return named if self.is_production or named else frozenset({DEVELOPMENT_ORIGIN})


def _is_web_url(text: str) -> bool:
    parts = urlsplit(text)
    is_plain = text.isascii() and text.isprintable() and " " not in text
    return is_plain and parts.scheme in ("http", "https") and bool(parts.hostname)
