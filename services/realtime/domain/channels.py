"""Channels: their names, and the subjects they have on the bus, which no user's text can break out of."""

import re

from services.realtime.model import ROOM_PATTERN
from shared.bus.base import LogConfig

CHAT = "chat"
PULSE = "public:pulse"

LOG = LogConfig(
    name="RT",
    subjects=("rt.in.>",),
    messages_per_subject_max=100,
    age_max_s=300,
    republish=("rt.in.>", "rt.out.>"),
)
"""One publish is history, fan-out and continuity: what the log stored is republished with its positions."""

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_ROOM = re.compile(ROOM_PATTERN)


def token_of(name: str) -> str:
    """Return a name as one word of a subject: bytes outside `[A-Za-z0-9_-]` become `=XX`, so no dot or wildcard is left."""
    return "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in name.encode())


def channel_of(room: str) -> str:
    """Return the channel of a chat room."""
    return f"{CHAT}:{room}"


def room_of(channel: str) -> str:
    """Return the room of a chat channel."""
    return channel.partition(":")[2]


def is_channel(name: str) -> bool:
    """Tell whether a name is one that clients may listen to: `chat:<room>` or `public:pulse`."""
    namespace, _, room = name.partition(":")
    return name == PULSE or (namespace == CHAT and _ROOM.match(room) is not None and not room.endswith("\n"))


def stored_subject(channel: str) -> str:
    """Return where publications of a channel are appended."""
    return _subject("in", channel)


def live_subject(channel: str) -> str:
    """Return where the log republishes them with their positions."""
    return _subject("out", channel)


def notice_subject(channel: str) -> str:
    """Return where joins and leaves are told; nobody keeps them."""
    return _subject("eph", channel)


def user_subject(user: str) -> str:
    """Return where a user's direct messages arrive."""
    return f"rt.user.{token_of(user)}"


def _subject(kind: str, channel: str) -> str:
    namespace, _, name = channel.partition(":")
    return f"rt.{kind}.{token_of(namespace)}.{token_of(name)}"
