"""Signing keys for admins: `/auth/keys`."""

from fastapi import APIRouter, Response

from services.users.model.edge import KeysShown, KeyView, RotateBody
from services.users.model.records import StoredKey
from services.users.routes.guard import GuardedRoute
from services.users.routes.parts import SHOWN_SCHEME, AdminWriter, Parts, Reader
from services.users.routes.respond import NO_STORE, json_response, problems

router = APIRouter(tags=["auth"], route_class=GuardedRoute)


def _shown(keys: list[StoredKey]) -> Response:
    items = [KeyView(kid=k.kid, state=k.state, since=k.state_since, created_at=k.created_at) for k in keys]
    return json_response(KeysShown(items=items))


@router.get(
    "/auth/keys",
    response_model=KeysShown,
    responses=problems(401, 403, 503),
    dependencies=[SHOWN_SCHEME],
    summary="List the signing keys, newest first (admins)",
)
async def keys(_: Reader, parts: Parts) -> Response:
    return _shown(await parts.rotation.all())


@router.post(
    "/auth/keys/rotate",
    response_model=KeysShown,
    responses=problems(400, 401, 403, 415, 422, 503),
    dependencies=[SHOWN_SCHEME],
    summary="Have a new key sign (admins)",
)
async def rotate(admin: AdminWriter, parts: Parts, body: RotateBody | None = None) -> Response:
    """Publish the next key, which signs once it has been published for `RH_USERS_KEY_AHEAD_S`; with `{"at_once": true}` it signs now,
    for a key that has got into wrong hands: for a second some tokens may be refused."""
    return _shown(await parts.rotation.rotate(admin, at_once=body is not None and body.at_once))


@router.delete(
    "/auth/keys/{kid}",
    status_code=204,
    responses=problems(401, 403, 404, 409, 503),
    dependencies=[SHOWN_SCHEME],
    summary="Take a key back that does not sign: its tokens are refused (admins)",
)
async def retire(kid: str, admin: AdminWriter, parts: Parts) -> Response:
    await parts.rotation.retire(admin, kid)
    return Response(status_code=204, headers=NO_STORE)
