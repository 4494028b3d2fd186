"""Log-in and sessions: `/auth/...`, and the public keys at `/.well-known/jwks.json`."""

from typing import Annotated

from fastapi import APIRouter, Form, Header, Response

from services.users.model.edge import KeysView, LoginForm, RefreshBody, TokenView, UserView
from services.users.model.records import Tokens
from services.users.routes.guard import GuardedRoute
from services.users.routes.parts import SHOWN_SCHEME, AskedBy, Parts, Reader
from services.users.routes.respond import NO_STORE, json_response, problems, user_response

router = APIRouter(tags=["auth"], route_class=GuardedRoute)

KEYS_MAX_AGE_S = 300


def _token_response(tokens: Tokens) -> Response:
    return json_response(
        TokenView(access_token=tokens.access_token, expires_in=tokens.expires_in_s, refresh_token=tokens.refresh_token),
        # RFC 6749, section 5.1; Pragma for caches older than HTTP/1.1.
        headers={"Pragma": "no-cache"},
    )


@router.post(
    "/auth/token", response_model=TokenView, responses=problems(401, 422, 429, 503), summary="Log in (OAuth2 password)"
)
async def log_in(form: Annotated[LoginForm, Form()], client: AskedBy, parts: Parts) -> Response:
    return _token_response(await parts.auth.log_in(form.username, form.password.get_secret_value(), client))


@router.post(
    "/auth/refresh",
    response_model=TokenView,
    responses=problems(400, 401, 415, 422, 503),
    summary="Exchange a refresh token; one used before ends its session, except within 10 s",
)
async def refresh(body: RefreshBody, client: AskedBy, parts: Parts) -> Response:
    return _token_response(await parts.sessions.refresh(body.refresh_token.get_secret_value(), client))


@router.get(
    "/auth/me",
    response_model=UserView,
    responses=problems(401, 503),
    dependencies=[SHOWN_SCHEME],
    summary="Read the own record",
)
async def me(reader: Reader, parts: Parts) -> Response:
    return user_response(await parts.sessions.user_of(reader))


@router.post(
    "/auth/logout",
    status_code=204,
    responses=problems(401, 503),
    dependencies=[SHOWN_SCHEME],
    summary="End the session of this token",
)
async def log_out(reader: Reader, parts: Parts) -> Response:
    await parts.sessions.log_out(reader)
    return Response(status_code=204, headers=NO_STORE)


@router.head("/.well-known/jwks.json", include_in_schema=False)
@router.get(
    "/.well-known/jwks.json",
    response_model=KeysView,
    responses={304: {"description": "Not modified."}},
    summary="The keys that verify access tokens",
)
async def jwks(parts: Parts, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    headers = {"ETag": parts.keys.etag, "Cache-Control": f"public, max-age={KEYS_MAX_AGE_S}"}
    named = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if named & {"*", parts.keys.etag}:
        return Response(status_code=304, headers=headers)
    return Response(parts.keys.document, headers=headers, media_type="application/json")
