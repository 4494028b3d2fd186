"""User records: `/users` and `/users/{user_id}`."""

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Request, Response

from services.users.domain.policy import Scope, holds
from services.users.domain.users import Changes, Draft
from services.users.model.edge import DeleteQuery, ListQuery, NewUser, UserPage, UserPatch, UserReplacement, UserView
from services.users.model.records import Answer, Finished, IdempotencyClaim, User
from services.users.model.view import user_json
from services.users.routes.guard import GuardedRoute
from services.users.routes.keyed import KEY_PARAMETER, answer_once
from services.users.routes.listing import page_json, user_query
from services.users.routes.parts import (
    SHOWN_SCHEME,
    AdminWriter,
    Parts,
    Writer,
    maybe_actor,
)
from services.users.routes.respond import (
    NO_STORE,
    problems,
    read_tags,
    tag_of,
    user_response,
)
from shared.errors import Forbidden, NotFound
from shared.ids import is_id

router = APIRouter(tags=["users"], route_class=GuardedRoute)

COLLECTION_ALLOW = "GET, HEAD, OPTIONS, POST"
RECORD_ALLOW = "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"

IfMatch = Annotated[str | None, Header(description='Change only this version, such as `"v3"`.')]


@router.post(
    "/users",
    status_code=201,
    response_model=UserView,
    responses=problems(400, 401, 409, 415, 422, 503),
    openapi_extra={"parameters": [KEY_PARAMETER]},
    summary="Register",
)
async def register(request: Request, body: NewUser, parts: Parts) -> Response:
    actor = await maybe_actor(request)

    async def work(claim: IdempotencyClaim | None) -> Answer:
        finish = None if claim is None else lambda user: Finished(claim, _created(user))
        return _created(await parts.users.register(draft_of(body), actor, finish))

    return await answer_once(request, parts, actor, work)


def draft_of(body: NewUser) -> Draft:
    return Draft(body.username, body.email, body.password.get_secret_value(), body.full_name)


def _created(user: User) -> Answer:
    return Answer(201, {"Location": f"/users/{user.id}", "ETag": tag_of(user)}, user_json(user))


@router.head("/users", include_in_schema=False)
@router.get(
    "/users",
    response_model=UserPage,
    responses=problems(401, 403, 422, 503),
    dependencies=[SHOWN_SCHEME],
    summary="List users (admins)",
)
async def list_users(query: Annotated[ListQuery, Query()], parts: Parts) -> Response:
    found = await parts.users.list(user_query(query, parts.cursors))
    return Response(page_json(found, query, parts.cursors), headers=NO_STORE, media_type="application/json")


@router.options("/users", status_code=204, summary="Say which methods there are")
async def options_of_users() -> Response:
    return Response(status_code=204, headers={"Allow": COLLECTION_ALLOW})


_WRITE_PROBLEMS = problems(400, 401, 403, 404, 409, 412, 415, 422, 428, 503)


@router.put(
    "/users/{user_id}",
    response_model=UserView,
    responses=_WRITE_PROBLEMS,
    dependencies=[SHOWN_SCHEME],
    summary="Replace what can be edited of a user (owner, admins)",
)
async def replace(
    user_id: str, writer: Writer, body: Annotated[UserReplacement, Body()], parts: Parts, if_match: IfMatch = None
) -> Response:
    changes = {"full_name": None, **_changes(body)}
    return user_response(await parts.users.change(writer, user_id, changes, read_tags(if_match, weak=False)))


@router.patch(
    "/users/{user_id}",
    response_model=UserView,
    responses=_WRITE_PROBLEMS,
    dependencies=[SHOWN_SCHEME],
    summary="Change a user by a JSON Merge Patch (owner, admins)",
    openapi_extra={
        "requestBody": {
            "content": {"application/merge-patch+json": {"schema": {"$ref": "#/components/schemas/UserPatch"}}}
        }
    },
)
async def patch(
    user_id: str, writer: Writer, body: Annotated[UserPatch, Body()], parts: Parts, if_match: IfMatch = None
) -> Response:
    changes = _changes(body)
    return user_response(await parts.users.change(writer, user_id, changes, read_tags(if_match, weak=False)))


@router.delete(
    "/users/{user_id}",
    status_code=204,
    responses=problems(401, 403, 404, 412, 422, 428, 503),
    dependencies=[SHOWN_SCHEME],
    summary="Delete a user with its sessions (owner, admins); an admin can restore it until it is purged",
)
async def delete(
    user_id: str, query: Annotated[DeleteQuery, Query()], writer: Writer, parts: Parts, if_match: IfMatch = None
) -> Response:
    match = read_tags(if_match, weak=False)
    if not query.purge:
        await parts.users.remove(writer, user_id, match)
    elif holds(writer.role, Scope.USERS_PURGE):
        await parts.users.purge(writer, user_id, match)
    else:
        raise Forbidden(f"deleting for good needs the scope {Scope.USERS_PURGE}")
    return Response(status_code=204, headers=NO_STORE)


@router.post(
    "/users/{user_id}/restore",
    response_model=UserView,
    responses=problems(401, 403, 404, 409, 503),
    dependencies=[SHOWN_SCHEME],
    summary="Restore a deleted user, with the password it had (admins)",
)
async def restore(user_id: str, writer: AdminWriter, parts: Parts) -> Response:
    return user_response(await parts.users.restore(writer, user_id))


@router.options("/users/{user_id}", status_code=204, responses=problems(404), summary="Say which methods there are")
async def options_of_user(user_id: str) -> Response:
    if not is_id(user_id):
        raise NotFound("there is no such user")
    return Response(status_code=204, headers={"Allow": RECORD_ALLOW})


def _changes(body: UserReplacement | UserPatch) -> Changes:
    """Return a checked body as plain values, the password unveiled."""
    changes: dict[str, str | None] = {}
    for name in ("username", "email", "full_name", "role"):
        if name in body:
            changes[name] = body[name]
    if "password" in body:
        changes["password"] = body["password"].get_secret_value()
    return changes
