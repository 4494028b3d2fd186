"""Log-in and sessions: `/auth/...`, and the public keys at `/.well-known/jwks.json`."""

from typing import Annotated

from fastapi import APIRouter, Form, Header, Response

from services.users.model.edge import KeysView, LoginForm, RefreshBody, TokenView, UserView
from services.users.model.records import Tokens
from services.users.routes import cookie
from services.users.routes.guard import GuardedRoute
from services.users.routes.parts import SHOWN_SCHEME, AskedBy, Parts, Reader
from services.users.routes.respond import NO_STORE, problems, user_response
from shared.errors import FieldError, InvalidInput

router = APIRouter(tags=["auth"], route_class=GuardedRoute)


CSRF_HEADER = Annotated[
    str | None, Header(alias=cookie.CSRF_HEADER, description="Any value, where the cookie is used.")
]


def _token_response(tokens: Tokens, *, by_cookie: bool = False) -> Response:
    view = TokenView(
        access_token=tokens.access_token,
        expires_in=tokens.expires_in_s,
        refresh_token=None if by_cookie else tokens.refresh_token,
    )
    # RFC 6749, section 5.1; Pragma for caches older than HTTP/1.1.
    headers = {**NO_STORE, "Pragma": "no-cache"}
    response = Response(view.model_dump_json(exclude_none=True), 200, headers, media_type="application/json")
    if by_cookie:
        cookie.set_cookie(response, tokens.refresh_token, lasts_s=tokens.session_lasts_s)
    return response


@router.post(
    "/auth/token",
    response_model=TokenView,
    responses=problems(401, 403, 422, 429, 503),
    summary="Log in (OAuth2 password)",
)
async def log_in(
    form: Annotated[LoginForm, Form()], client: AskedBy, door: cookie.Door, parts: Parts, _: CSRF_HEADER = None
) -> Response:
    """Give tokens for a username or e-mail address with its password.

    With `cookie=true` the refresh token comes in the cookie `__Host-rh_refresh` instead of the body, for pages: HttpOnly, Secure,
    SameSite=Strict. That needs the header `X-CSRF: 1` and an `Origin` that is ours or allowed.
    """
    if form.cookie:
        door.require()
    tokens = await parts.auth.log_in(form.username, form.password.get_secret_value(), client)
    return _token_response(tokens, by_cookie=form.cookie)


@router.post(
    "/auth/refresh",
    response_model=TokenView,
    responses=problems(400, 401, 403, 415, 422, 503),
    summary="Exchange a refresh token; one used before ends its session, except within 10 s",
)
async def refresh(
    client: AskedBy, door: cookie.Door, parts: Parts, body: RefreshBody | None = None, _: CSRF_HEADER = None
) -> Response:
    """Exchange the refresh token of the body, else that of the cookie, whose successor comes in the cookie again.

    With the cookie it needs the header `X-CSRF: 1` and an `Origin` that is ours or allowed, and no body.
    """
    if body is not None:
        return _token_response(await parts.sessions.refresh(body.refresh_token.get_secret_value(), client))
    if not door.token:
        message = "is needed, here or in the cookie"
        raise InvalidInput(
            f"body.refresh_token: {message}", errors=[FieldError("body.refresh_token", message, "missing")]
        )
    door.require()
    return _token_response(await parts.sessions.refresh(door.token, client), by_cookie=True)


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
async def log_out(reader: Reader, door: cookie.Door, parts: Parts) -> Response:
    await parts.sessions.log_out(reader)
    response = Response(status_code=204, headers=NO_STORE)
    if door.token:
        cookie.clear_cookie(response)
    return response


@router.head("/.well-known/jwks.json", include_in_schema=False)
@router.get(
    "/.well-known/jwks.json",
    response_model=KeysView,
    responses={304: {"description": "Not modified."}},
    summary="The keys that verify access tokens",
)
async def jwks(parts: Parts, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    headers = {"ETag": parts.keys.etag, "Cache-Control": f"public, max-age={parts.keys.max_age_s}"}
    named = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if named & {"*", parts.keys.etag}:
        return Response(status_code=304, headers=headers)
    return Response(parts.keys.document, headers=headers, media_type="application/json")
