"""A chat session: reads one client's frames, does what they ask, and answers each that carries an id."""

from typing import Any

from services.realtime import model
from services.realtime.domain.channels import channel_of, room_of
from services.realtime.domain.conduct import Pace
from services.realtime.hub.hub import Hub
from services.realtime.hub.peers import FLOOD, MALFORMED, Connection
from services.realtime.hub.topics import Overloaded
from services.realtime.model import BadFrame, DirectFrame, JoinFrame, LeaveFrame, MessageFrame, PingFrame, RoomsFrame
from shared.bus.base import BusUnavailable, NoResponder


class Refused(Exception):
    """A frame that was understood and cannot be done; the client is told `code` and the text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Session:
    """The protocol side of one connection; frames are handled one after the other, so a client's messages keep their order."""

    def __init__(self, connection: Connection, hub: Hub) -> None:
        self._connection = connection
        self._hub = hub

    @property
    def rooms(self) -> list[str]:
        return [room_of(channel) for channel in self._connection.channels]

    async def begin(self, replica: str) -> None:
        """Enter the lobby and greet. Raises Overloaded or BusUnavailable."""
        await self._hub.enter(channel_of(model.LOBBY), self._connection)
        self._connection.notice(model.welcome(self._connection.user, replica=replica, rooms=self.rooms))

    async def end(self) -> None:
        """Leave everything and tell the rooms that were joined by name; in the lobby nobody is told who comes and goes."""
        for channel in self._hub.dismiss(self._connection):
            if room_of(channel) != model.LOBBY:
                await self._hub.tell("left", channel, self._connection)

    async def handle(self, text: str | None) -> None:
        """Handle one frame; None stands for a binary one."""
        pace = self._connection.conduct.judge_pace()
        if pace is Pace.FLOOD:
            self._connection.close(FLOOD, "too many messages")
            return
        try:
            frame = model.parse_frame(text)
        except BadFrame as bad:
            self._hub.metrics.messages_in.labels("bad").inc()
            self._refuse_bad(bad, pace)
            return
        self._hub.metrics.messages_in.labels(frame.type).inc()
        self._connection.conduct.note_good()
        if pace is Pace.TOO_FAST:
            self._say_error("rate_limited", "too many messages; slow down", frame.id)
            return
        await self._answer(frame)

    def _refuse_bad(self, bad: BadFrame, pace: Pace) -> None:
        if pace is Pace.TOO_FAST:
            self._say_error("rate_limited", "too many messages; slow down", bad.frame_id)
        else:
            self._say_error(bad.code, str(bad), bad.frame_id)
        if self._connection.conduct.note_bad():
            self._connection.close(MALFORMED, "too many bad frames")

    async def _answer(self, frame: model.ClientFrame) -> None:
        try:
            done = await self._do(frame)
        except Refused as refused:
            self._say_error(refused.code, str(refused), frame.id)
        except Overloaded:
            self._say_error("overloaded", "this replica has no place for another room", frame.id)
        except BusUnavailable:
            self._say_error("bus_unavailable", "this cannot be done at the moment; try again", frame.id)
        else:
            if frame.id is not None:
                self._connection.notice(model.reply(frame.id, done))

    def _say_error(self, code: str, message: str, frame_id: int | str | None) -> None:
        self._connection.notice(model.error(code, message, frame_id))

    async def _do(self, frame: model.ClientFrame) -> dict[str, Any]:
        if isinstance(frame, MessageFrame):
            return await self._say(frame)
        if isinstance(frame, DirectFrame):
            return await self._send_direct(frame)
        if isinstance(frame, JoinFrame):
            return await self._join(frame)
        if isinstance(frame, LeaveFrame):
            return await self._leave(frame)
        if isinstance(frame, RoomsFrame):
            if frame.id is None:
                self._connection.notice(model.encode({"type": "rooms", "rooms": self.rooms}))
            return {"rooms": self.rooms}
        assert isinstance(frame, PingFrame)
        if frame.id is None:
            self._connection.notice(model.encode({"type": "pong"}))
        return {"pong": True}

    async def _say(self, frame: MessageFrame) -> dict[str, Any]:
        channel = channel_of(frame.room)
        if channel not in self._connection.channels:
            raise Refused("not_in_room", "join the room before you speak in it")
        position = await self._hub.publish(channel, {"content": frame.content}, user=self._connection.user)
        return {"id": str(position)}

    async def _send_direct(self, frame: DirectFrame) -> dict[str, Any]:
        try:
            message_id, sent = await self._hub.send_direct(self._connection.user, frame.to, frame.content)
        except NoResponder:
            raise Refused("user_not_connected", "this user is not connected") from None
        if frame.to != self._connection.user:
            self._connection.notice(sent)
        return {"id": message_id}

    async def _join(self, frame: JoinFrame) -> dict[str, Any]:
        channel, connection = channel_of(frame.room), self._connection
        if channel not in connection.channels:
            if len(connection.channels) >= self._hub.limits.rooms_max:
                raise Refused("room_limit", f"a connection may be in {self._hub.limits.rooms_max} rooms")
            await self._hub.enter(channel, connection)
            connection.notice(model.notice("joined", room=frame.room, user=connection.user))
            await self._hub.tell("joined", channel, connection)
        return {"room": frame.room}

    async def _leave(self, frame: LeaveFrame) -> dict[str, Any]:
        channel, connection = channel_of(frame.room), self._connection
        if channel in connection.channels:
            self._hub.leave(channel, connection)
            connection.notice(model.notice("left", room=frame.room, user=connection.user))
            await self._hub.tell("left", channel, connection)
        return {"room": frame.room}
