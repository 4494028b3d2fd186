"""The bus as its users see it: events to many, requests to one, and durable logs with positions.

Subjects are dotted words without spaces or wildcards when publishing; subscribing knows `*` (one word) and a last `>` (the rest).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

MESSAGE_BYTES_MAX = 256 * 1024
"""A message's data may have so many bytes; more is a ValueError at the publisher."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `offset` and `previous_offset` (positions in the log of the same subject, 0: none) only on republished ones."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    offset: int = 0
    previous_offset: int = 0
    reply: str = ""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """A durable log (a JetStream stream): what it keeps, and where it republishes what it stored.

    `republish` maps a source pattern to a destination pattern (`("rt.in.>", "rt.out.>")`): core subscribers of the destination
    get every stored message once, with its positions.
    """

    name: str
    subjects: tuple[str, ...]
    messages_per_subject_max: int
    age_max_s: float
    bytes_max: int = 256 * 1024 * 1024
    message_bytes_max: int = MESSAGE_BYTES_MAX
    duplicate_window_s: float = 120.0
    republish: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Append:
    """One of several messages to be stored together."""

    subject: str
    data: bytes
    message_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Appended:
    """The log's answer: the position, and whether a message with the same id was already there (then nothing was stored)."""

    offset: int
    duplicate: bool


class BusUnavailable(Exception):
    """The bus did not take or answer in time; nothing is known about what it did."""


class NoResponder(Exception):
    """Nobody listens on the subject of a request."""


Handler = Callable[[Message], Awaitable[None]]


class Subscription(Protocol):
    @property
    def dropped(self) -> int:
        """How many messages were lost because the handler was too slow."""

    async def stop(self) -> None:
        """Take no further messages; those already handed over are finished, within 5 s. Idempotent; the handler itself may call it."""


class Bus(Protocol):
    """All calls raise BusUnavailable when the bus is away past `timeout_s`; none blocks longer."""

    @property
    def connected(self) -> bool: ...

    @property
    def session(self) -> int:
        """A number that rises with every connection made anew: what was published between two of them was not delivered here."""

    async def publish(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send to whoever listens now; at most once. Raises BusUnavailable at once while disconnected (nothing is buffered).

        Where more than 1 MiB is unsent it waits for the server, at most 2 s. Names of headers beginning with `Nats-` are the
        server's own: ValueError.
        """

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Call `handler` for each message, one at a time and in order; with `queue`, each message goes to one member of the group.

        Active at the server when this returns. At most 1,024 messages wait; when more come the oldest is dropped and counted.
        A handler's exception is logged and the next message is handled. The subscription comes back by itself after an outage;
        what was published meanwhile is not delivered.
        """

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Message:
        """Send and await one answer. Raises NoResponder at once when nobody listens."""

    async def ping(self, *, timeout_s: float) -> None:
        """Make one round trip to the server."""

    async def ensure_log(self, config: LogConfig, *, timeout_s: float = 5.0) -> str:
        """Create the log or bring it to `config`; return its epoch, a text that changes when the log is created anew.

        Replicas may do so at once. Raises ValueError for a configuration that can never be (subjects of another log). Call it again
        after an outage: a server that lost its store has no log until somebody does.
        """

    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 2.0,
    ) -> Appended:
        """Store in the log that takes `subject`; returns when it is durable. Same `message_id` inside the window: stored once.

        Raises BusUnavailable too when no log takes the subject. After BusUnavailable append again with the same `message_id`.
        """

    async def append_all(self, messages: Sequence[Append], *, timeout_s: float = 5.0) -> list[Appended]:
        """Store 1 to 1,000 messages of one log in their order, durable when this returns: together, where none of the ids was there.

        Where some were (the same batch again after a failure) the others are stored one by one. Raises ValueError for messages of
        different logs. After BusUnavailable append all again with the same ids.
        """

    async def read(
        self,
        log: str,
        subject: str,
        *,
        after: int,
        limit: int,
        age_max_s: float | None = None,
        timeout_s: float = 2.0,
    ) -> list[Message]:
        """Return up to `limit` (1 to 1,000) stored messages of exactly `subject` with offset > `after`, oldest first, offsets set.

        With `age_max_s`, and `after` 0, those are left out that the server stored before that, by our clock.

        `previous_offset` chains inside the answer and is 0 on its first message. Whether something after `after` is gone already
        is seen by reading from `after - 1`: the first message's offset is `after`, or there is a hole. Raises BusUnavailable too
        when there is no such log.
        """

    async def last_offset(self, log: str, subject: str, *, timeout_s: float = 2.0) -> int:
        """Return the newest offset of `subject`, 0 when it has none."""

    async def close(self) -> None:
        """Finish what is under way within a bound and disconnect. Idempotent."""
