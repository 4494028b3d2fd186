"""Many users at once: `POST /users/batch`."""

from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from services.users.domain.batch import Result
from services.users.domain.users import Draft
from services.users.model.edge import BatchQuery, BatchView, NewUser, NewUsers
from services.users.model.records import Answer, Finished, IdempotencyClaim, User
from services.users.model.view import view_of
from services.users.routes.guard import GuardedRoute
from services.users.routes.keyed import KEY_PARAMETER, answer_once
from services.users.routes.parts import SHOWN_SCHEME, AdminWriter, Parts
from services.users.routes.respond import problems, tag_of
from services.users.routes.users import draft_of
from shared import context
from shared.errors import InvalidInput, Problem
from shared.problems import field_errors

ITEM_ERRORS_MAX = 8
"""A hundred items have their errors in one answer."""

router = APIRouter(tags=["users"], route_class=GuardedRoute)


@router.post(
    "/users/batch",
    status_code=207,
    response_model=BatchView,
    responses={
        201: {"model": BatchView, "description": "All are stored (`atomic=true`)."},
        **problems(400, 401, 403, 409, 415, 422, 503),
    },
    dependencies=[SHOWN_SCHEME],
    openapi_extra={"parameters": [KEY_PARAMETER]},
    summary="Register up to 100 users, each by itself or all or none (admins)",
)
async def register_many(
    request: Request, query: Annotated[BatchQuery, Query()], body: NewUsers, writer: AdminWriter, parts: Parts
) -> Response:
    items = [_read(item) for item in body.items]

    def answer(results: Sequence[Result]) -> Answer:
        views = [_view(result, request.url.path) for result in results]
        return Answer(201 if query.atomic else 207, {}, orjson.dumps({"results": views}))

    async def work(claim: IdempotencyClaim | None) -> Answer:
        results = await parts.batches.create(
            items,
            writer,
            is_atomic=query.atomic,
            finish=None if claim is None else lambda found: Finished(claim, answer(found)),
        )
        return answer(results)

    return await answer_once(request, parts, writer, work)


def _read(item: Any) -> Draft | Problem:
    """Return an item checked, or what is wrong with it: the others need not suffer for it."""
    try:
        return draft_of(NewUser.model_validate(item))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        errors = field_errors([{**item, "loc": ("body", *item["loc"])} for item in found[:ITEM_ERRORS_MAX]])
        return InvalidInput("some fields of this item are not valid", errors=errors)


def _view(result: Result, path: str) -> dict[str, Any]:
    if isinstance(result, User):
        return {"status": 201, "location": f"/users/{result.id}", "etag": tag_of(result), "user": view_of(result)}
    found = context.current()
    document = result.document(instance=path, request_id=found.request_id if found else "")
    return {"status": result.status, "problem": document}
