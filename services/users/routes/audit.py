"""The audit log: `GET /audit`, for admins."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response

from services.users.model.edge import AuditListQuery, AuditPage
from services.users.model.records import AuditEntry, AuditQuery
from services.users.model.view import time_text
from services.users.routes.guard import GuardedRoute
from services.users.routes.parts import SHOWN_SCHEME, Parts, Reader
from services.users.routes.respond import NO_STORE, problems

router = APIRouter(tags=["audit"], route_class=GuardedRoute)


@router.head("/audit", include_in_schema=False)
@router.get(
    "/audit",
    response_model=AuditPage,
    responses=problems(401, 403, 422, 503),
    dependencies=[SHOWN_SCHEME],
    summary="Who did what to which user, newest first (admins)",
)
async def read_audit(query: Annotated[AuditListQuery, Query()], _: Reader, parts: Parts) -> Response:
    scope = orjson.dumps(["audit", query.user, query.actor, query.action, query.since])
    before = int(parts.cursors.read(scope, query.cursor)[0]) if query.cursor else None
    found = await parts.audit.page(
        AuditQuery(query.user or "", query.actor or "", query.action, query.since, before=before, limit=query.limit + 1)
    )
    page = found[: query.limit]
    after = parts.cursors.write(scope, [page[-1].number]) if len(found) > query.limit else None
    body = orjson.dumps({"items": [_view(entry) for entry in page], "next": after})
    return Response(body, headers=NO_STORE, media_type="application/json")


def _view(entry: AuditEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "at": time_text(entry.at),
        "action": entry.action,
        "user_id": entry.user_id or None,
        "actor_id": entry.actor_id or None,
        "request_id": entry.request_id or None,
        "address": entry.address or None,
        "before": entry.before,
        "after": entry.after,
    }
