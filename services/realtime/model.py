"""The frames of the chat socket: what clients may say, as strict types, and what they are told, as encoded text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

LOBBY = "lobby"
CONTENT_CHARS_MAX = 4000
ROOM_PATTERN = r"^[A-Za-z0-9_.:-]{1,64}$"

FrameId = Annotated[int, Field(ge=-(2**53), le=2**53)] | Annotated[str, StringConstraints(min_length=1, max_length=64)]
"""Chosen by the client to find the reply; 2**53 is what every JSON reader keeps exactly."""

RoomName = Annotated[str, StringConstraints(pattern=ROOM_PATTERN)]
UserId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
Content = Annotated[str, StringConstraints(min_length=1, max_length=CONTENT_CHARS_MAX)]


class _Frame(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: FrameId | None = None


class MessageFrame(_Frame):
    """Say something to everyone in a room."""

    type: Literal["message"]
    room: RoomName = LOBBY
    content: Content


class DirectFrame(_Frame):
    """Say something to one user, on every connection that user has."""

    type: Literal["direct"]
    to: UserId
    content: Content


class JoinFrame(_Frame):
    type: Literal["join"]
    room: RoomName


class LeaveFrame(_Frame):
    type: Literal["leave"]
    room: RoomName


class RoomsFrame(_Frame):
    """Ask which rooms this connection is in."""

    type: Literal["rooms"]


class PingFrame(_Frame):
    type: Literal["ping"]


ClientFrame = Annotated[
    MessageFrame | DirectFrame | JoinFrame | LeaveFrame | RoomsFrame | PingFrame, Field(discriminator="type")
]
_CLIENT_FRAME: TypeAdapter[ClientFrame] = TypeAdapter(ClientFrame)
_FRAME_ID: TypeAdapter[FrameId] = TypeAdapter(FrameId, config=ConfigDict(strict=True))


class BadFrame(Exception):
    """A frame that is not understood; `code` for programs, `id` of the frame where it could be read."""

    def __init__(self, code: str, message: str, frame_id: int | str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.frame_id = frame_id


def parse_frame(text: str | None) -> ClientFrame:
    """Return what a client said; `text` None stands for a binary message. Raises BadFrame."""
    if text is None:
        raise BadFrame("invalid_frame", "frames are JSON text, not binary")
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadFrame("malformed_json", "the frame is not valid JSON") from None
    if not isinstance(data, dict):
        raise BadFrame("invalid_frame", "a frame is a JSON object")
    try:
        return _CLIENT_FRAME.validate_python(data)
    except ValidationError as error:
        raise _bad_frame(error, data) from None


def _bad_frame(error: ValidationError, data: Mapping[str, Any]) -> BadFrame:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    frame_id = frame_id_of(data)
    if first["type"] == "union_tag_invalid":
        return BadFrame(
            "unknown_type", "the frame's type is none of message, direct, join, leave, rooms, ping", frame_id
        )
    if first["type"] == "union_tag_not_found":
        return BadFrame("invalid_frame", "type: a frame says its type", frame_id)
    # The first place is the frame's type; a field name that the client made up is not shown at any length.
    where = ".".join(str(part) for part in first["loc"][1:])[:64]
    return BadFrame("invalid_frame", f"{where}: {first['msg']}"[:300], frame_id)


def frame_id_of(data: Mapping[str, Any]) -> int | str | None:
    """Return the id of a frame that is otherwise not understood, None where it has no usable one."""
    try:
        return _FRAME_ID.validate_python(data.get("id"))
    except ValidationError:
        return None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A frame as it goes out, encoded once for all who get it."""

    text: str
    size_bytes: int


def encode(frame: Mapping[str, Any]) -> Encoded:
    """Return a frame ready to be sent."""
    data = orjson.dumps(frame)
    return Encoded(data.decode(), len(data))


def welcome(user: str, *, replica: str, rooms: list[str]) -> Encoded:
    return encode({"type": "welcome", "user": user, "replica": replica, "rooms": rooms})


def reply(frame_id: int | str, ok: Mapping[str, Any]) -> Encoded:
    return encode({"type": "reply", "id": frame_id, "ok": ok})


def error(code: str, message: str, frame_id: int | str | None = None) -> Encoded:
    named = {} if frame_id is None else {"id": frame_id}
    return encode({"type": "error", **named, "code": code, "message": message})


def notice(kind: Literal["joined", "left"], *, room: str, user: str) -> Encoded:
    return encode({"type": kind, "room": room, "user": user})


def gap(room: str) -> Encoded:
    """Tell that messages of a room may be missing and cannot be read any more."""
    return encode({"type": "gap", "room": room})


def bye(retry_ms: tuple[int, int]) -> Encoded:
    """Tell that this replica stops, and after how long to connect again: somewhere between the two, in milliseconds."""
    return encode({"type": "bye", "code": 1012, "retry_ms": list(retry_ms)})
