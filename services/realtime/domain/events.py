"""The event bus: typed events of the platform over the message bus, as CloudEvents 1.0."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from shared.bus.base import Bus, Message, Subscription
from shared.ids import new_id

VERSION = "v1"
SEEN_MAX = 1000
"""So many event ids a subscriber remembers: a relay that repeats itself is heard once."""


@dataclass(frozen=True, slots=True)
class Event:
    """`type` is `<service>.<entity>.<verb>`, such as `users.user.created`; `subject` names the record it is about."""

    id: str
    type: str
    source: str
    subject: str
    time: str
    data: Mapping[str, Any]


EventHandler = Callable[[Event], Awaitable[None]]


class EventBus:
    """Subscribers hear what is published while they listen, at most once; `evt.*` is also kept in the log EVT by its owner."""

    def __init__(self, bus: Bus, *, source: str) -> None:
        self._bus = bus
        self._source = source

    async def subscribe(self, type: str, handler: EventHandler, *, queue: str = "") -> Subscription:  # noqa: A002
        """Call `handler` for events of a type (`users.user.*` for all verbs); with `queue`, each goes to one member of the group."""
        seen: OrderedDict[str, None] = OrderedDict()

        async def on_message(message: Message) -> None:
            event = read_event(message.data)
            if event.id in seen:
                return
            seen[event.id] = None
            if len(seen) > SEEN_MAX:
                seen.popitem(last=False)
            await handler(event)

        return await self._bus.subscribe(f"evt.{type}.{VERSION}", on_message, queue=queue)

    async def publish(self, type: str, data: Mapping[str, Any], *, subject: str = "") -> Event:  # noqa: A002
        """Store an event durably and tell who listens. Raises BusUnavailable, also where no log keeps events."""
        time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        event = Event(new_id(), type, self._source, subject, time, data)
        await self._bus.append(f"evt.{type}.{VERSION}", _write_event(event), message_id=event.id)
        return event


def _write_event(event: Event) -> bytes:
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": event.id,
            "type": event.type,
            "source": event.source,
            "subject": event.subject,
            "time": event.time,
            "datacontenttype": "application/json",
            "data": dict(event.data),
        }
    )


def read_event(document: bytes) -> Event:
    """Read a CloudEvent in JSON form. Raises ValueError when it is none."""
    found = orjson.loads(document)
    match found:
        case {"id": str(event_id), "type": str(kind), "source": str(source), "data": dict(data)} if event_id and kind:
            subject, time = found.get("subject", ""), found.get("time", "")
            return Event(event_id, kind, source, str(subject), str(time), data)
    raise ValueError("this is no CloudEvent with an id, a type, a source and an object as its data")
