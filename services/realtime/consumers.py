"""Consumers: what the service does about events of others and about orders to all of its replicas."""

import orjson
import structlog

from services.realtime.domain.events import Event, EventBus
from services.realtime.hub.hub import Hub
from services.realtime.hub.peers import FORBIDDEN
from shared.bus.base import Bus, Message, Subscription

CONTROL_SUBJECT = "ctl.realtime.all"
AUDIT_QUEUE = "realtime-audit"
NOTIFIER_QUEUE = "realtime-notifier"

_log = structlog.get_logger()


async def subscribe(bus: Bus, events: EventBus, hub: Hub) -> list[Subscription]:
    """Begin to listen; the caller stops what is returned."""

    async def on_deleted(event: Event) -> None:
        _close_all(hub, event.subject, reason="the user was deleted")

    async def on_control(message: Message) -> None:
        order = orjson.loads(message.data)
        user = order.get("disconnect") if isinstance(order, dict) else None
        if not isinstance(user, str):
            _log.warning("control_order_unknown")
            return
        _close_all(hub, user, reason="disconnected by the platform")

    return [
        await events.subscribe("users.user.deleted", on_deleted),
        # Of these two one replica of the fleet does the work.
        await events.subscribe("users.user.*", audit, queue=AUDIT_QUEUE),
        await events.subscribe("users.user.created", notify, queue=NOTIFIER_QUEUE),
        await bus.subscribe(CONTROL_SUBJECT, on_control),
    ]


def _close_all(hub: Hub, user: str, *, reason: str) -> None:
    closed = hub.disconnect(user, code=FORBIDDEN, reason=reason)
    if closed:
        _log.info("user_disconnected", user=user, peers=closed, reason=reason)


async def audit(event: Event) -> None:
    """Write the audit line of a user event."""
    _log.info("audit", event_type=event.type, event_id=event.id, user=event.subject, at=event.time)


async def notify(event: Event) -> None:
    """Note that a user is new; what tells others of it comes with durable consumers."""
    _log.info("user_created", user=event.subject, event_id=event.id)
