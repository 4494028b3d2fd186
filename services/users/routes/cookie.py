"""The refresh token in a cookie that no script can read, and the rule that keeps other sites' pages from using it.

A page says `X-CSRF: 1`, which a foreign page cannot without asking first (CORS), and browsers say its origin, which must be ours or a
listed one. SameSite=Strict keeps the cookie away from other sites besides; it does not from other ports or subdomains of ours.
"""

from collections.abc import Collection
from typing import Annotated

from fastapi import Depends, Request, Response

from services.users.routes.parts import Parts
from shared.errors import Forbidden

NAME = "__Host-rh_refresh"
"""The prefix makes browsers refuse it from a subdomain, without Secure, or with another path."""

CSRF_HEADER = "X-CSRF"


def set_cookie(response: Response, refresh_token: str, *, lasts_s: float) -> None:
    """Put a refresh token into the cookie; on plain http browsers take it for localhost only."""
    response.set_cookie(
        NAME, refresh_token, max_age=int(lasts_s), path="/", secure=True, httponly=True, samesite="strict"
    )


def clear_cookie(response: Response) -> None:
    response.delete_cookie(NAME, path="/", secure=True, httponly=True, samesite="strict")


class CookieDoor:
    """What a request may do with the cookie."""

    def __init__(self, request: Request, origins: Collection[str]) -> None:
        self.token = request.cookies.get(NAME, "")
        self._csrf = request.headers.get(CSRF_HEADER, "")
        self._origin = request.headers.get("origin", "").lower()
        host = request.headers.get("x-forwarded-host") or request.headers.get("host", "")
        self._allowed = {f"http://{host.lower()}", f"https://{host.lower()}", *origins}

    def require(self) -> None:
        """Raise Forbidden unless a page of ours or of a listed origin asks, and says so."""
        if not self._csrf:
            raise Forbidden(f"the refresh cookie is used with the header {CSRF_HEADER}: 1", code="csrf_header_missing")
        if self._origin not in self._allowed:
            raise Forbidden(
                "the refresh cookie is not used from this Origin; RH_USERS_ORIGINS lists others than our own",
                code="origin_not_allowed",
            )


async def _door(request: Request, parts: Parts) -> CookieDoor:
    return CookieDoor(request, parts.origins)


Door = Annotated[CookieDoor, Depends(_door)]
