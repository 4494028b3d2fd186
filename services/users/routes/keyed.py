"""Requests with an `Idempotency-Key`: run once, answered the same again."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response

from services.users.domain.idempotency import KeyedRequest
from services.users.model.records import Actor, Answer, IdempotencyClaim
from services.users.routes.parts import RouteParts
from services.users.routes.respond import NO_STORE
from shared.errors import FieldError, InvalidInput

_KEY = re.compile(r"[\x21-\x7e]{1,255}")

KEY_PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A text of your choice, such as a UUID. The same request with it again within 24 h gets the same answer, marked "
    "`Idempotency-Replayed: true`, and is not carried out again; another body is 422, a request that still runs 409.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}

Work = Callable[[IdempotencyClaim | None], Awaitable[Answer]]


async def answer_once(request: Request, parts: RouteParts, actor: Actor | None, work: Work) -> Response:
    """Return the answer of `work`, or the one kept under the key of the request; without a key the claim is None.

    Raises InvalidInput, Conflict, and what `work` raises.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return _response(await work(None), {})
    if _KEY.fullmatch(key) is None:
        message = "must have 1 to 255 visible ASCII characters"
        raise InvalidInput(
            f"header.idempotency-key: {message}", errors=[FieldError("header.idempotency-key", message, "key")]
        )
    keyed = KeyedRequest(
        method=request.method,
        route=f"{request.url.path}?{request.url.query}",
        subject=actor.user_id if actor else "",
        key=key,
        body=await request.body(),
    )
    answer, is_replayed = await parts.idempotency.run(keyed, work)
    return _response(answer, {"Idempotency-Replayed": "true"} if is_replayed else {})


def _response(answer: Answer, headers: dict[str, str]) -> Response:
    return Response(
        answer.body, answer.status, {**NO_STORE, **answer.headers, **headers}, media_type="application/json"
    )
