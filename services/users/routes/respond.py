"""Responses: users and tokens as JSON with their headers, entity tags, and how the documents show problems."""

import re
from typing import Any

from fastapi import Response
from pydantic import BaseModel

from services.users.model.records import Match, User
from services.users.model.view import user_json
from shared.errors import PROBLEM_MEDIA_TYPE

NO_STORE = {"Cache-Control": "no-store"}
_TAG = re.compile(r'\s*(?P<weak>W/)?"(?P<opaque>[\x21\x23-\x7e\x80-\xff]*)"\s*')
_VERSION = re.compile(r"v([1-9][0-9]{0,9})", re.ASCII)
_TAGS_MAX = 32


def tag_of(user: User) -> str:
    return f'"v{user.version}"'


def read_tags(header: str | None, *, weak: bool) -> Match | None:
    """Return the versions named by `If-Match` (strong comparison) or `If-None-Match` (weak); None without the header.

    RFC 9110, sections 8.8.3 and 13.1. What is no tag of ours matches nothing.
    """
    if header is None:
        return None
    if header.strip() == "*":
        return Match(is_any=True)
    versions = set()
    for item in header.split(",")[:_TAGS_MAX]:
        tag = _TAG.fullmatch(item)
        version = _VERSION.fullmatch(tag["opaque"]) if tag else None
        if tag and version and (weak or not tag["weak"]):
            versions.add(int(version[1]))
    return Match(frozenset(versions))


def json_response(view: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a view as JSON that no cache keeps."""
    return Response(view.model_dump_json(), status, {**NO_STORE, **(headers or {})}, media_type="application/json")


def user_response(user: User, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a user as JSON that no cache keeps."""
    return Response(
        user_json(user), status, {**NO_STORE, "ETag": tag_of(user), **(headers or {})}, media_type="application/json"
    )


_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message", "code"],
                "properties": {
                    "field": {"type": "string"},
                    "message": {"type": "string"},
                    "code": {"type": "string"},
                },
            },
        },
    },
}

_MEANINGS = {
    400: "The body is not JSON.",
    401: "No valid access token, or its session has ended.",
    403: "Admins only.",
    404: "There is no such user, or it is not yours.",
    409: "The username or e-mail address is taken.",
    412: "The record is not at the version of If-Match.",
    415: "The body is not labelled as JSON.",
    422: "Some fields are not valid; `errors` lists them.",
    428: "If-Match is required here.",
    429: "Too many failed log-ins from this address; see Retry-After.",
    503: "Too busy, or the store is away; see Retry-After.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return how the documents show refusals: RFC 9457 documents of these statuses."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {PROBLEM_MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA}},
        }
        for status in statuses
    }
