"""Edge models: the bodies that come in, checked and normalised, and the views that go out."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

# pydantic reads TypedDict from typing_extensions on Python < 3.12.
from typing_extensions import TypedDict

from services.users.model import text
from services.users.model.records import KeyState, Role
from services.users.model.view import DELETED_FIELDS
from shared.tokens import TICKET_LASTS_S

V = TypeVar("V")


def _ruled(code: str, rule: Callable[[V], object]) -> AfterValidator:
    """Return a validator that applies a rule of text; the rule's sentence reaches the client as it is, under `code`."""

    def check(value: V) -> object:
        try:
            return rule(value)
        except ValueError as error:
            raise PydanticCustomError(code, str(error)) from None

    return AfterValidator(check)


def _normalised(value: SecretStr) -> SecretStr:
    found = text.normalise_password(value.get_secret_value())
    # Composing may have made it shorter than what was counted before.
    if len(found) < text.PASSWORD_CHARS_MIN:
        raise ValueError(f"must have at least {text.PASSWORD_CHARS_MIN} characters")
    return SecretStr(found)


Username = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9._-]{3,32}$"),
    Field(description="Unique whatever its case.", examples=["ada"]),
]
Email = Annotated[
    str,
    StringConstraints(max_length=text.EMAIL_CHARS_MAX),
    _ruled("email", text.normalise_email),
    Field(description="Stored in NFKC and case-folded; unique.", examples=["ada@example.com"]),
]
Password = Annotated[
    SecretStr,
    Field(
        min_length=text.PASSWORD_CHARS_MIN,
        max_length=text.PASSWORD_CHARS_MAX,
        description="Not equal to the username or the e-mail address.",
    ),
    _ruled("password", _normalised),
]
FullName = Annotated[
    str,
    StringConstraints(max_length=text.FULL_NAME_CHARS_MAX),
    _ruled("full_name", text.normalise_full_name),
    Field(description="Blank is the same as null."),
]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class NewUser(_Input):
    """A registration."""

    username: Username
    email: Email
    password: Password
    full_name: FullName | None = None


class UserReplacement(TypedDict):
    """Everything of a user that can be edited; `password` and `role` stay as they are where they are left out."""

    __pydantic_config__ = ConfigDict(extra="forbid", hide_input_in_errors=True)  # type: ignore[misc]

    username: Username
    email: Email
    full_name: NotRequired[FullName | None]
    password: NotRequired[Password]
    role: NotRequired[Annotated[Role, Field(description="Admins only.")]]


class UserPatch(TypedDict):
    """A JSON Merge Patch (RFC 7396): what is named changes, null clears, what is left out stays."""

    __pydantic_config__ = ConfigDict(extra="forbid", hide_input_in_errors=True)  # type: ignore[misc]

    username: NotRequired[Username]
    email: NotRequired[Email]
    full_name: NotRequired[FullName | None]
    password: NotRequired[Password]
    role: NotRequired[Annotated[Role, Field(description="Admins only.")]]


class UserView(BaseModel):
    """A user as its owner and admins see it; only for the documents, `model/view.py` makes the JSON."""

    id: str
    username: str
    email: str
    email_verified: bool
    full_name: str | None
    role: Role
    created_at: datetime
    updated_at: datetime
    version: int


class UserPage(BaseModel):
    """A page of users; only the `fields` asked for, with `deleted_at` where the deleted ones are listed."""

    items: list[UserView]
    next: str | None = Field(description="The cursor of the next page, null at the end.")
    count: int | None = Field(None, description="Of all pages, where `count=true`.")


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie in the years 1 to 9999") from None


Moment = Annotated[AwareDatetime, _ruled("moment", _in_utc)]


def _searchable(q: str) -> str:
    found = text.normalise_full_name(q) or ""
    if q and not text.fold(found):
        raise ValueError("must not be blank")
    return found


def _known_fields(fields: str) -> str:
    if fields and not set(fields.split(",")) <= set(DELETED_FIELDS):
        raise ValueError(f"must be names from {', '.join(DELETED_FIELDS)}, with commas between them")
    return fields


class ListQuery(_Input):
    """The query of the list of users."""

    limit: int = Field(20, ge=1, le=100)
    cursor: str = Field(
        "", max_length=2048, description="The `next` of the page before; filters and sort must be the same as there."
    )
    sort: Literal[
        "created_at", "-created_at", "username", "-username", "email", "-email", "deleted_at", "-deleted_at"
    ] = Field("created_at", description="`-` for descending; `deleted_at` only with `deleted=true`.")
    role: Role | None = None
    username: Username | None = Field(None, description="Whatever its case.")
    email: Email | None = None
    verified: bool | None = Field(None, description="Whether the address is a verified one.")
    created_after: Moment | None = Field(None, description="RFC 3339 with a zone; exclusive, as `created_before`.")
    created_before: Moment | None = None
    q: Annotated[str, StringConstraints(max_length=text.FULL_NAME_CHARS_MAX), _ruled("q", _searchable)] = Field(
        "", description="How the username, the address, the full name or its last word begins, A to Z in any case."
    )
    fields: Annotated[str, StringConstraints(max_length=200), _ruled("fields", _known_fields)] = Field(
        "", description="Only these fields of each user, such as `id,username`."
    )
    count: bool = Field(False, description="Count the users on all pages.")
    deleted: bool = Field(False, description="The deleted users that can be restored, instead of the live ones.")

    @property
    def field_names(self) -> frozenset[str]:
        return frozenset(self.fields.split(",")) if self.fields else frozenset()

    @model_validator(mode="after")
    def _refuse_deleted_at(self) -> "ListQuery":
        if not self.deleted and (self.sort.endswith("deleted_at") or "deleted_at" in self.field_names):
            raise PydanticCustomError("deleted_at", "deleted_at is known only with deleted=true")
        return self


class NewUsers(_Input):
    """Registrations; each item is checked by itself."""

    items: Annotated[list[Any], Field(json_schema_extra={"items": {"$ref": "#/components/schemas/NewUser"}})] = Field(
        min_length=1, max_length=100
    )


class BatchQuery(_Input):
    atomic: bool = Field(False, description="Store all or none; else each by itself.")


class BatchItemView(BaseModel):
    """What became of an item: 201 with the user, or a status with its problem."""

    status: int
    location: str | None = None
    etag: str | None = None
    user: UserView | None = None
    problem: dict[str, Any] | None = None


class BatchView(BaseModel):
    """One result for each item, in their order."""

    results: list[BatchItemView]


class AuditView(BaseModel):
    """A line of the audit log; `before` and `after` hold what changed, addresses and names masked."""

    number: int
    at: datetime
    action: str = Field(examples=["user.updated"])
    user_id: str | None
    actor_id: str | None = Field(description="Null where nobody was signed in, or the service did it itself.")
    request_id: str | None
    address: str | None = Field(description="Of the client; of IPv6 the /64.")
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class AuditPage(BaseModel):
    items: list[AuditView]
    next: str | None = Field(description="The cursor of the next page, null at the end.")


UserId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class AuditListQuery(_Input):
    """The query of the audit log."""

    user: UserId | None = Field(None, description="Whom it was done to.")
    actor: UserId | None = Field(None, description="Who did it.")
    action: str = Field("", max_length=64, pattern=r"^[a-z_.]*$", examples=["user.deleted"])
    since: Moment | None = Field(None, description="RFC 3339 with a zone; inclusive.")
    limit: int = Field(20, ge=1, le=100)
    cursor: str = Field(
        "", max_length=256, description="The `next` of the page before; filters must be the same as there."
    )


class DeleteQuery(_Input):
    purge: bool = Field(False, description="For good, at once, whether deleted before or not. Admins only.")


class LoginForm(BaseModel):
    """The OAuth2 password form (RFC 6749, section 4.3.2); client credentials and scopes are taken and ignored."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    username: str = Field(min_length=1, max_length=text.LOGIN_CHARS_MAX, description="Username or e-mail address.")
    password: SecretStr = Field(min_length=1)
    grant_type: Literal["password"] = "password"
    cookie: bool = Field(False, description="The refresh token comes in a cookie, not in the body.")


class RefreshBody(_Input):
    refresh_token: SecretStr = Field(min_length=1, max_length=256)


OneTimeTokenText = Annotated[SecretStr, Field(min_length=1, max_length=256, description="From the mail; good once.")]


class VerifyBody(_Input):
    token: OneTimeTokenText


class ForgotBody(_Input):
    email: Email


class ResetBody(_Input):
    token: OneTimeTokenText
    password: Password


class TokenView(BaseModel):
    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the name of a scheme
    expires_in: int = Field(description="Seconds.")
    refresh_token: str | None = Field(
        None, description="Good for one use at `/auth/refresh`; absent where it is in the cookie."
    )


class SessionView(BaseModel):
    id: str
    created_at: datetime
    used_at: datetime = Field(description="When it was last refreshed.")
    expires_at: datetime
    address: str = Field(description="Where it was last refreshed from; of IPv6 the /64.")
    user_agent: str = Field(description="What it was last refreshed by, as it called itself.")
    current: bool = Field(description="Whether the access token of this request belongs to it.")


class SessionsView(BaseModel):
    items: list[SessionView] = Field(description="At most 100: one more log-in ends the oldest.")


class KeysView(BaseModel):
    """A JSON Web Key Set (RFC 7517)."""

    keys: list[dict[str, str]]


class KeyView(BaseModel):
    kid: str
    state: KeyState = Field(
        description="`next` is published, `active` signs, `retired` verifies until its last token expired."
    )
    since: datetime
    created_at: datetime


class KeysShown(BaseModel):
    items: list[KeyView]


class RotateBody(_Input):
    at_once: bool = Field(False, description="The new key signs now, before others can know it.")


class TicketView(BaseModel):
    ticket: str = Field(description="Good once.")
    expires_in: int = Field(TICKET_LASTS_S, description="Seconds.")
