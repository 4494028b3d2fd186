"""What the gateway adds to each operation of the platform's OpenAPI document: its policies, and the answers that it gives itself."""

from collections.abc import Iterator
from typing import Any

from services.gateway.domain.retrying import may_repeat
from services.gateway.model import Auth, GatewayConfig, Route, ServicePolicy
from shared.errors import (
    PROBLEM_MEDIA_TYPE,
    BadGateway,
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    HeadTooLarge,
    Problem,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    UriTooLong,
)

Document = dict[str, Any]

_REFUSALS: tuple[type[Problem], ...] = (
    BadRequest,
    Unauthorized,
    Forbidden,
    BodyTooLarge,
    UriTooLong,
    UnsupportedMediaType,
    HeadTooLarge,
    TooManyRequests,
    BadGateway,
    Unavailable,
    DeadlineExceeded,
)
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
_RESPONSE_HEADERS: dict[type[Problem], Document] = {
    Unauthorized: {"WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}}},
    TooManyRequests: _RETRY_AFTER,
    Unavailable: _RETRY_AFTER,
}
_PROBLEM: Document = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "For programs; it does not change."},
        "request_id": {"type": "string", "description": "As in `X-Request-ID` and in the logs."},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}},
    },
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
}


_FIELD_ERROR: Document = {
    "type": "object",
    "description": "One bad field of an input.",
    "properties": {
        "field": {"type": "string", "examples": ["body.email"]},
        "message": {"type": "string"},
        "code": {"type": "string"},
    },
    "required": ["field", "message", "code"],
}


def refusal_components() -> dict[tuple[str, str], Document]:
    """Return by kind and name what the gateway's own answers look like."""
    found: dict[tuple[str, str], Document] = {
        ("schemas", "Problem"): _PROBLEM,
        ("schemas", "FieldError"): _FIELD_ERROR,
    }
    for refusal in _REFUSALS:
        schema = {"$ref": "#/components/schemas/Problem"}
        response: Document = {"description": refusal.title, "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}}}
        if refusal in _RESPONSE_HEADERS:
            response["headers"] = _RESPONSE_HEADERS[refusal]
        found["responses", refusal.__name__] = response
    return found


def refusals_of(config: GatewayConfig, route: Route | None, auth: Auth, *, has_body: bool) -> Iterator[type[Problem]]:
    """Yield how the gateway may refuse a request, by what its route asks for; `route` is None for its own operations."""
    yield from (BadRequest, UriTooLong, HeadTooLarge)
    if auth != "public":
        yield Unauthorized
    if auth == "admin" or config.addresses.allow:
        yield Forbidden
    if has_body:
        yield from (BodyTooLarge, UnsupportedMediaType)
    if route is not None:
        if route.limits:
            yield TooManyRequests
        yield from (BadGateway, Unavailable, DeadlineExceeded)


def policies_of(config: GatewayConfig, route: Route, method: str) -> Document:
    """Return the policies that a request of a method (in upper case) meets on its route, as `x-roundhouse` shows them."""
    treatment = config.services.get(route.service, ServicePolicy())
    limits = {limit.name: limit for limit in config.limits}
    may_retry = route.kind != "websocket" and treatment.retries_max > 0
    return {
        "route": route.path,
        "service": route.service,
        "access": route.auth,
        "kind": route.kind,
        "rate_limits": [
            limits[name].model_dump(mode="json", exclude={"store_down"}) | {"cost": route.cost} for name in route.limits
        ],
        "deadline_s": route.timeout_s,
        "retries": {
            "max": treatment.retries_max if may_retry else 0,
            "needs_idempotency_key": may_retry and not may_repeat(method, has_idempotency_key=False),
        },
        "body_bytes_max": route.body_bytes_max,
    }
