"""A user's inbox on this replica: direct messages for every connection the user has here."""

from services.realtime.domain.channels import user_subject
from services.realtime.hub.peers import Connection
from services.realtime.hub.topics import Topic
from services.realtime.model import Encoded
from shared.bus.base import Bus, Message, Subscription

DELIVERED = b"1"


class Inbox(Topic):
    """Answers a direct message only when a connection took it, so that the sender learns whether anybody did."""

    def __init__(self, user: str, *, bus: Bus) -> None:
        super().__init__()
        self._user = user
        self._bus = bus
        self._subscription: Subscription | None = None

    def count(self, kind: str) -> int:
        """Return how many peers of a kind the user has here."""
        return sum(member.kind == kind for member in self.members.values())

    async def open(self) -> None:
        self._subscription = await self._bus.subscribe(user_subject(self._user), self._on_message)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.stop()
            self._subscription = None

    async def _on_message(self, message: Message) -> None:
        frame = Encoded(message.data.decode(), len(message.data))
        is_delivered = False
        for member in self.members.values():
            if isinstance(member, Connection) and not member.closing.is_set():
                member.notice(frame)
                is_delivered = True
        if is_delivered and message.reply:
            await self._bus.publish(message.reply, DELIVERED)
