"""The one translator: every Problem, framework error and bad input becomes `application/problem+json`."""

import re
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.types import Scope, Send

from shared import context
from shared.errors import (
    PROBLEM_MEDIA_TYPE,
    BadRequest,
    FieldError,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    Problem,
    UnsupportedMediaType,
)

FIELD_ERRORS_MAX = 32
"""More bad fields than these are counted, not listed: the answer to a hostile body must stay small."""


def body_of(problem: Problem, path: str) -> bytes:
    """Return the JSON text of a problem met while serving `path`."""
    found = context.current()
    return orjson.dumps(problem.document(instance=path, request_id=found.request_id if found else ""))


def response_of(problem: Problem, path: str) -> Response:
    """Return the framework response of a problem."""
    headers = {**problem.headers, "Cache-Control": "no-store"}
    return Response(body_of(problem, path), problem.status, headers, media_type=PROBLEM_MEDIA_TYPE)


async def send_problem(problem: Problem, scope: Scope, send: Send) -> None:
    """Answer an ASGI request with a problem, outside of any framework."""
    body = body_of(problem, scope["path"])
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *((name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_MISSPELT = re.compile(r"[^\x20-\x7e]")


def field_errors(found: Sequence[Any]) -> list[FieldError]:
    """Return the errors of a validation as a problem lists them: bounded, and without what was sent but for names of fields."""
    errors = []
    for item in found[:FIELD_ERRORS_MAX]:
        # An unknown field's name comes from outside: it is shown, but bounded and printable.
        field = _MISSPELT.sub("?", ".".join(str(part) for part in item["loc"]))[:200]
        errors.append(FieldError(field, str(item["msg"])[:300], str(item["type"])))
    return errors


def of_validation(error: RequestValidationError, request: Request) -> Problem:
    """Return what a refused input means: 400 not JSON, 415 JSON not labelled so, else 422 with each bad field."""
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return BadRequest("the body is not valid JSON", code="malformed_json")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = content_type == "application/json" or content_type.endswith("+json")
    is_form = content_type in ("application/x-www-form-urlencoded", "multipart/form-data")
    if any(tuple(item["loc"]) == ("body",) and item["type"] != "missing" for item in found) and not (
        is_json or is_form
    ):
        return UnsupportedMediaType("send the body as JSON with `Content-Type: application/json`")
    more = len(found) - FIELD_ERRORS_MAX
    detail = "; ".join(f"{e.field}: {e.message}" for e in field_errors(found)[:3])
    return InvalidInput(detail + (f"; and {more} more" if more > 0 else ""), errors=field_errors(found))


def _allowed_methods(request: Request) -> list[str]:
    """Collect the methods of every route with this path: the framework names only those of the first it met."""
    methods: set[str] = set()
    for found in iter_route_contexts(request.app.routes):
        route: Any = found.route
        regex, allowed = getattr(route, "path_regex", None), getattr(route, "methods", None)
        if regex is not None and allowed and regex.match(request.url.path):
            methods |= set(allowed)
    return sorted(methods)


def of_http_exception(error: HTTPException, request: Request) -> Problem:
    """Return the problem of a framework exception."""
    if isinstance(error.__cause__, Problem):
        return error.__cause__
    if error.status_code == 404:
        return NotFound()
    if error.status_code == 405:
        return MethodNotAllowed(allow=_allowed_methods(request))
    if error.status_code == 400:
        return BadRequest(str(error.detail)[:300])
    return _of_status(error.status_code, str(error.detail)[:300], dict(error.headers or {}))


def _of_status(status: int, detail: str, headers: dict[str, str]) -> Problem:
    for kind in _all_problems(Problem):
        # A service's own problem means more than its status says.
        if kind.status == status and kind.__module__ == Problem.__module__:
            problem = kind(detail)
            problem.headers.update(headers)
            return problem
    return Problem(detail)


def _all_problems(root: type[Problem]) -> list[type[Problem]]:
    found = []
    for kind in root.__subclasses__():
        if not kind.__name__.startswith("_"):
            found.append(kind)
        found += _all_problems(kind)
    return found


def install(app: FastAPI) -> None:
    """Make the translator answer for everything that a route of `app` raises; a bug goes on to the Faults middleware."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return response_of(error, request.url.path)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response_of(of_validation(error, request), request.url.path)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return response_of(of_http_exception(error, request), request.url.path)

    async def on_bug(request: Request, _: Exception) -> Response:
        return response_of(Problem(), request.url.path)

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_bug)
