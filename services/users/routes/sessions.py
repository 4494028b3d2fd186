"""Sessions shown and ended: `/auth/sessions` for their user, `/users/{user_id}/sessions` for admins."""

from fastapi import APIRouter, Response

from services.users.model.edge import SessionsView, SessionView, TicketView
from services.users.model.records import Session
from services.users.routes.guard import GuardedRoute
from services.users.routes.parts import SHOWN_SCHEME, AdminWriter, Parts, Reader, Writer
from services.users.routes.respond import NO_STORE, json_response, problems
from shared.identity import SignedIn

router = APIRouter(tags=["auth"], route_class=GuardedRoute)


def _shown(sessions: list[Session], current: str = "") -> Response:
    items = [
        SessionView(
            id=session.id,
            created_at=session.created_at,
            used_at=session.used_at or session.created_at,
            expires_at=session.expires_at,
            address=session.address,
            user_agent=session.user_agent,
            current=session.id == current,
        )
        for session in sessions
    ]
    return json_response(SessionsView(items=items))


@router.get(
    "/auth/sessions",
    response_model=SessionsView,
    responses=problems(401, 503),
    dependencies=[SHOWN_SCHEME],
    summary="List the own sessions, newest first",
)
async def own_sessions(reader: Reader, parts: Parts) -> Response:
    return _shown(await parts.sessions.of_user(reader.user_id), reader.session_id)


@router.delete(
    "/auth/sessions",
    status_code=204,
    responses=problems(401, 503),
    dependencies=[SHOWN_SCHEME],
    summary="End all other own sessions",
)
async def end_others(writer: Writer, parts: Parts) -> Response:
    await parts.sessions.end_all(writer, writer.user_id, keep=writer.session_id)
    return Response(status_code=204, headers=NO_STORE)


@router.delete(
    "/auth/sessions/{session_id}",
    status_code=204,
    responses=problems(401, 404, 503),
    dependencies=[SHOWN_SCHEME],
    summary="End one of the own sessions",
)
async def end_one(session_id: str, writer: Writer, parts: Parts) -> Response:
    await parts.sessions.end(writer, writer.user_id, session_id)
    return Response(status_code=204, headers=NO_STORE)


@router.get(
    "/users/{user_id}/sessions",
    response_model=SessionsView,
    responses=problems(401, 403, 503),
    dependencies=[SHOWN_SCHEME],
    summary="List the sessions of a user, newest first (admins)",
)
async def sessions_of_user(user_id: str, _: Reader, parts: Parts) -> Response:
    return _shown(await parts.sessions.of_user(user_id))


@router.delete(
    "/users/{user_id}/sessions",
    status_code=204,
    responses=problems(401, 403, 503),
    dependencies=[SHOWN_SCHEME],
    summary="End all sessions of a user (admins)",
)
async def end_of_user(user_id: str, admin: AdminWriter, parts: Parts) -> Response:
    await parts.sessions.end_all(admin, user_id)
    return Response(status_code=204, headers=NO_STORE)


@router.post(
    "/auth/ticket",
    response_model=TicketView,
    responses=problems(401, 503),
    dependencies=[SHOWN_SCHEME],
    summary="Get a ticket for one socket or event stream",
)
async def ticket(reader: Reader, identity: SignedIn, parts: Parts) -> Response:
    """Give a ticket for `WS /ws/chat?ticket=` or `GET /sse/stream?ticket=`, where a page can set no header: good once, for 30 s.

    What it opens lives as long as the access token that asked for it, and ends with the session.
    """
    found = await parts.sessions.ticket(reader, until=identity.expires_at)
    return json_response(TicketView(ticket=found))
