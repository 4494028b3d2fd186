"""Accounts: an e-mail address is verified, and a forgotten password set anew, by a token that came in a mail.

Each changes something by POST only. What scans mails opens every link in them, so none of these may answer to GET.
"""

from fastapi import APIRouter, Response

from services.users.model.edge import ForgotBody, ResetBody, VerifyBody
from services.users.routes.guard import GuardedRoute
from services.users.routes.parts import SHOWN_SCHEME, Parts, Writer
from services.users.routes.respond import NO_STORE, problems

router = APIRouter(tags=["auth"], route_class=GuardedRoute)


@router.post(
    "/auth/email/verify/request",
    status_code=202,
    response_class=Response,
    responses=problems(401, 503),
    dependencies=[SHOWN_SCHEME],
    summary="Have a mail sent that verifies the own address",
)
async def request_verification(writer: Writer, parts: Parts) -> Response:
    """Send the mail of a registration again; none where the address is verified already, or after too many in an hour."""
    await parts.accounts.request_verification(writer)
    return _accepted()


@router.post(
    "/auth/email/verify",
    status_code=204,
    responses=problems(400, 415, 422, 503),
    summary="Verify an address by the token of a mail",
)
async def verify(body: VerifyBody, parts: Parts) -> Response:
    await parts.accounts.verify(body.token.get_secret_value())
    return Response(status_code=204, headers=NO_STORE)


@router.post(
    "/auth/password/forgot",
    status_code=202,
    response_class=Response,
    responses=problems(400, 415, 422, 503),
    summary="Have a mail sent that allows to set a new password",
)
async def forgot(body: ForgotBody, parts: Parts) -> Response:
    """Answer the same whether the address is anybody's or not."""
    await parts.accounts.forgot(body.email)
    return _accepted()


@router.post(
    "/auth/password/reset",
    status_code=204,
    responses=problems(400, 415, 422, 503),
    summary="Set a new password by the token of a mail; ends all sessions",
)
async def reset(body: ResetBody, parts: Parts) -> Response:
    await parts.accounts.reset(body.token.get_secret_value(), body.password.get_secret_value())
    return Response(status_code=204, headers=NO_STORE)


def _accepted() -> Response:
    return Response(status_code=202, headers=NO_STORE)
