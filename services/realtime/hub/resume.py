"""Resuming: a stream that goes on exactly after the last event its client saw, or says honestly that it cannot."""

from services.realtime.domain.channels import LOG
from services.realtime.domain.positions import Position
from services.realtime.hub.channel import Channel
from services.realtime.hub.hub import Hub
from services.realtime.hub.peers import RESET_EVENT, Stream


async def enter_stream(hub: Hub, stream: Stream, name: str, *, since: Position | None) -> Position:
    """Let a stream listen to a channel, its backlog holding what it missed; return the place it begins after.

    Subscribes first and reads history second, so nothing falls between; what both bring is sent once, since the outbox only gets
    what comes after the channel's place at entering, and history only what is not after it.
    """
    channel = await hub.enter(name, stream)
    # No await since the stream became a member: this is the place its live events follow.
    place = stream.after = channel.offset
    if since is None:
        return channel.position
    if since.epoch != channel.epoch:
        stream.backlog.append(RESET_EVENT)
        return channel.position
    if since.offset > place:
        return await _wait_for(channel, stream, since)
    missed = await _missed(channel, since.offset, place)
    if missed is None:
        stream.backlog.append(RESET_EVENT)
        return channel.position
    stream.backlog.extend(missed)
    return since


async def _wait_for(channel: Channel, stream: Stream, since: Position) -> Position:
    """Resume after a place that this replica has not come to yet; a place the log does not know either is no place."""
    if await channel.newest_offset() >= since.offset:
        stream.after = since.offset
        return since
    stream.backlog.append(RESET_EVENT)
    return channel.position


async def _missed(channel: Channel, after: int, place: int) -> list[bytes] | None:
    """Return the events after `after` up to `place`; None when the log cannot prove that these are all.

    The proof is that the log still has the client's own last event, right before them; before the first event of a channel (0),
    that the log has not come to its limit.
    """
    if after == place:
        return []
    limit = LOG.messages_per_subject_max + 1
    found = await channel.history(after=max(0, after - 1), limit=limit)
    has_own = bool(found) and found[0].position.offset == after
    is_proven = has_own if after else len(found) < LOG.messages_per_subject_max
    if not is_proven:
        return None
    return [p.event for p in found if after < p.position.offset <= place]
