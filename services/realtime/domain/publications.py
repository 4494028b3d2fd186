"""Publications: what the log holds of a channel, and the two forms in which listeners get it, each encoded once."""

from collections.abc import Mapping
from typing import Any

import orjson

from services.realtime.domain.channels import CHAT, room_of
from services.realtime.domain.positions import Position
from services.realtime.model import Encoded, encode
from shared.bus.base import Message


class Publication:
    """One stored message of a channel; `user` is who said it, empty for the platform itself; `time` is RFC 3339 in UTC."""

    __slots__ = ("_event", "_frame", "channel", "data", "position", "time", "user")

    def __init__(self, channel: str, position: Position, *, user: str, time: str, data: Mapping[str, Any]) -> None:
        self.channel = channel
        self.position = position
        self.user = user
        self.time = time
        self.data = data
        self._frame: Encoded | None = None
        self._event: bytes | None = None

    @property
    def frame(self) -> Encoded:
        """The WebSocket frame."""
        if self._frame is None:
            self._frame = encode(self._message())
        return self._frame

    @property
    def event(self) -> bytes:
        """The server-sent event, id and blank line included."""
        if self._event is None:
            namespace, _, name = self.channel.partition(":")
            kind, data = ("message", self._message()) if namespace == CHAT else (name, self.data)
            # orjson writes no line breaks, so the data is one line whatever a user typed.
            self._event = b"id: %b\nevent: %b\ndata: %b\n\n" % (
                str(self.position).encode(),
                kind.encode(),
                orjson.dumps(data),
            )
        return self._event

    def _message(self) -> dict[str, Any]:
        return {
            "type": "message",
            "room": room_of(self.channel),
            **self.data,
            "from": {"id": self.user},
            "id": str(self.position),
            "time": self.time,
        }


def to_stored(data: Mapping[str, Any], *, user: str, time: str) -> bytes:
    """Return the form in which the log keeps a publication."""
    return orjson.dumps({"u": user, "ts": time, "d": data})


def from_stored(message: Message, *, channel: str, epoch: str) -> Publication:
    """Read what the log kept. Raises ValueError when it is not a publication."""
    found = orjson.loads(message.data)
    match found:
        case {"u": str(user), "ts": str(time), "d": dict(data)}:
            return Publication(channel, Position(epoch, message.offset), user=user, time=time, data=data)
    raise ValueError("a stored message is no publication with its sender, time and data")
