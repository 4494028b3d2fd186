"""The routes: the state of the fleet in one word, and of every part; both from what is known, waiting for nothing."""

from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from services.health.model import Health, HealthDetail, State
from shared.app import parts_of
from shared.identity import signed_in
from shared.tokens import TokenVerifier

router = APIRouter()
NO_STORE = {"Cache-Control": "no-store"}


class Known(Protocol):
    """What is known of the fleet at this moment."""

    def __call__(self) -> HealthDetail: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes work with; `is_open` lets anybody see the details."""

    verifier: TokenVerifier
    known: Known
    is_open: bool


def parts(request: Request) -> Parts:
    found: Parts = parts_of(request)
    return found


WithParts = Annotated[Parts, Depends(parts)]


async def may_see_details(request: Request, parts: WithParts) -> None:
    """Raises Unauthorized where details are for people who are signed in."""
    if not parts.is_open:
        await signed_in(request)


@router.head("/health", include_in_schema=False)
@router.get("/health", response_model=Health, responses={503: {"model": Health, "description": "The fleet is down."}})
async def health(parts: WithParts) -> Response:
    """Tell whether the fleet is up or degraded (200) or down (503)."""
    state = parts.known().state
    return JSONResponse({"state": state.value}, 503 if state is State.DOWN else 200, headers=NO_STORE)


@router.head("/health/detailed", include_in_schema=False, dependencies=[Depends(may_see_details)])
@router.get("/health/detailed", response_model=HealthDetail, dependencies=[Depends(may_see_details)])
async def health_detailed(parts: WithParts) -> Response:
    """Tell the state of every component and replica; in production for people who are signed in."""
    return JSONResponse(parts.known().model_dump(mode="json", exclude_none=True), headers=NO_STORE)
