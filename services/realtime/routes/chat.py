"""The chat socket, `/ws/chat`: handshake, the tasks of one connection, and how it ends."""

import asyncio
import time

import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from services.realtime.hub.hub import TooManyConnections
from services.realtime.hub.peers import SLOW, TOKEN_EXPIRED, TRY_LATER, Connection
from services.realtime.hub.session import Session
from services.realtime.hub.topics import Overloaded
from services.realtime.routes.access import BUS_AWAY, SUBPROTOCOL, Parts, check_not_revoked, identify, open_parts
from services.realtime.routes.cutting import cut, cut_later
from shared.bus.base import BusUnavailable
from shared.errors import Problem, Unavailable
from shared.problems import response_of
from shared.tokens import Identity

OPEN_TIMEOUT_S = 5.0
FLUSH_TIMEOUT_S = 1.0

router = APIRouter()


@router.websocket("/ws/chat")
async def chat(websocket: WebSocket) -> None:
    """Serve one chat socket from handshake to close."""
    parts = open_parts(websocket)
    try:
        identity = await identify(websocket, parts)
        limits, metrics = parts.hub.limits, parts.hub.metrics
        connection = Connection(identity.subject, limits=limits, metrics=metrics, identity=identity)
        session = Session(connection, parts.hub)
        try:
            is_welcome = await _admit(connection, session, parts)
            check_not_revoked(identity, parts)
            subprotocol = SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None
            await websocket.accept(subprotocol)
            if is_welcome:
                await _serve(websocket, connection, session, expires_in_s=_expires_in_s(identity, parts))
            await _hang_up(websocket, connection)
        finally:
            await session.end()
    except Problem as problem:
        await websocket.send_denial_response(response_of(problem, websocket.url.path))
    except WebSocketDisconnect:
        # The client went away during the handshake: there is nobody to answer.
        return


async def _admit(connection: Connection, session: Session, parts: Parts) -> bool:
    """Enter the hub before the handshake is answered, so that being full or without a bus can still be said as a problem.

    False: the user has too many sockets, which is said by a close code, since browsers hide the status of a handshake.
    """
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await parts.hub.admit(connection)
            await session.begin(parts.replica)
    except TooManyConnections:
        connection.close(TRY_LATER, "too many connections of this user")
        return False
    except Overloaded:
        raise Unavailable("this replica has no place for another connection", code="overloaded") from None
    except (BusUnavailable, TimeoutError):
        raise BUS_AWAY from None
    return True


def _expires_in_s(identity: Identity, parts: Parts) -> float:
    return identity.expires_at + parts.leeway_s - time.time()


async def _serve(websocket: WebSocket, connection: Connection, session: Session, *, expires_in_s: float) -> None:
    """Read and write until the connection is to be closed or the client is gone."""
    loop = asyncio.get_running_loop()
    expiry = loop.call_later(expires_in_s, connection.close, TOKEN_EXPIRED, "the access token has expired")
    try:
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(_read(websocket, connection, session))
            writer = group.create_task(_write(websocket, connection))
            await connection.closing.wait()
            reader.cancel()
            if connection.farewell.gone or connection.farewell.code == SLOW:
                writer.cancel()
            # Else the outbox has ended: the writer sends what waits and returns.
            await asyncio.wait({writer}, timeout=FLUSH_TIMEOUT_S)
            writer.cancel()
    except* Exception as errors:  # noqa: BLE001 - the edge of one connection: logged, then closed with 1011
        structlog.get_logger().error("connection_failed", exc_info=errors)
        connection.fail()
    finally:
        expiry.cancel()


async def _read(websocket: WebSocket, connection: Connection, session: Session) -> None:
    while not connection.closing.is_set():
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            connection.leave()
        else:
            await session.handle(message.get("text"))


async def _write(websocket: WebSocket, connection: Connection) -> None:
    while (frame := await connection.outbox.take()) is not None:
        try:
            await websocket.send({"type": "websocket.send", "text": frame.text})
        except (WebSocketDisconnect, RuntimeError):
            # Gone, or the server itself has just closed it (a frame too big, no pong): then it refuses to send any more.
            connection.leave()
            return


async def _hang_up(websocket: WebSocket, connection: Connection) -> None:
    """Say the close code; cut the connection where even that cannot be written."""
    farewell = connection.farewell
    if farewell.gone:
        return
    try:
        async with asyncio.timeout(FLUSH_TIMEOUT_S):
            await websocket.close(farewell.code, farewell.reason)
    except TimeoutError:
        cut(websocket.scope)
    except (WebSocketDisconnect, RuntimeError):
        # It closed from the other side in this moment.
        return
    else:
        cut_later(websocket.scope)
