"""Problems: every failure we expect, as a type with a status, a stable code and a text that is safe to show.

```
Problem
├── BadRequest 400          ├── Conflict 409             ├── TooManyRequests 429
├── Unauthorized 401        ├── PreconditionFailed 412   ├── HeadTooLarge 431
├── Forbidden 403           ├── BodyTooLarge 413         ├── BadGateway 502
├── NotFound 404            ├── UriTooLong 414           ├── Unavailable 503
├── MethodNotAllowed 405    ├── UnsupportedMediaType 415 └── DeadlineExceeded 504
├── RequestTimeout 408      ├── MisdirectedRequest 421
└── InvalidInput 422        └── PreconditionRequired 428
```
The document form is `application/problem+json` of RFC 9457. This module imports nothing of ours and no framework.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field of an input: `field` as a dotted path such as `body.email`, `message` for a person, `code` for a program."""

    field: str
    message: str
    code: str = "invalid"


class Problem(Exception):
    """A failure that the client is told about; `detail` must never hold a secret, a host name or a stack.

    `headers` go out with the response, `extra` becomes further members of the document.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(
        self,
        detail: str = "",
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.problem_code = code or self.code
        self.errors = tuple(errors)
        self.headers = dict(headers or {})

    def document(self, *, instance: str, request_id: str) -> dict[str, Any]:
        """Return the RFC 9457 document: `type, title, status, detail, instance, code, request_id` and `errors` if any."""
        found: dict[str, Any] = {
            "type": f"urn:roundhouse:problem:{self.problem_code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.problem_code,
            "request_id": request_id,
        }
        if self.errors:
            found["errors"] = [{"field": e.field, "message": e.message, "code": e.code} for e in self.errors]
        return found


class CannotStart(Exception):
    """A service cannot start until something outside is changed; the text says what, without a secret."""


class BadRequest(Problem):
    status, code, title = 400, "bad_request", "The request is malformed"


class Unauthorized(Problem):
    """Who is asking is not proven; always carries `WWW-Authenticate: Bearer` (RFC 6750, section 3)."""

    status, code, title = 401, "unauthorized", "A valid access token is needed"

    def __init__(self, detail: str = "", *, code: str | None = None) -> None:
        super().__init__(detail, code=code, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(Problem):
    status, code, title = 403, "forbidden", "This is not allowed for you"


class NotFound(Problem):
    status, code, title = 404, "not_found", "There is nothing at this address"


class MethodNotAllowed(Problem):
    """`allow` lists the methods that the address knows (RFC 9110, section 15.5.6)."""

    status, code, title = 405, "method_not_allowed", "This method is not known here"

    def __init__(self, detail: str = "", *, allow: Sequence[str] = ()) -> None:
        super().__init__(detail, headers={"Allow": ", ".join(allow)})


class RequestTimeout(Problem):
    status, code, title = 408, "request_timeout", "The request did not arrive in time"


class Conflict(Problem):
    status, code, title = 409, "conflict", "The request contradicts what is stored"


class PreconditionFailed(Problem):
    status, code, title = 412, "precondition_failed", "The record has changed in the meantime"


class BodyTooLarge(Problem):
    status, code, title = 413, "body_too_large", "The body is larger than allowed"


class UriTooLong(Problem):
    status, code, title = 414, "uri_too_long", "The address is longer than allowed"


class UnsupportedMediaType(Problem):
    status, code, title = 415, "unsupported_media_type", "The body is in a form that is not understood here"


class MisdirectedRequest(Problem):
    status, code, title = 421, "misdirected_request", "This authority is not served here"


class InvalidInput(Problem):
    """Well-formed input with wrong content; `errors` lists each bad field."""

    status, code, title = 422, "invalid_input", "Some fields are not valid"


class PreconditionRequired(Problem):
    status, code, title = 428, "precondition_required", "This change needs an If-Match header"


class _Retryable(Problem):
    """A refusal that passes; `retry_after_s` (seconds, rounded up, at least 1) becomes `Retry-After`."""

    def __init__(self, detail: str = "", *, retry_after_s: float = 1.0, code: str | None = None) -> None:
        super().__init__(detail, code=code, headers={"Retry-After": str(max(1, ceil(retry_after_s)))})


class TooManyRequests(_Retryable):
    status, code, title = 429, "too_many_requests", "Too many requests"


class HeadTooLarge(Problem):
    status, code, title = 431, "head_too_large", "The request's head is larger than allowed"


class BadGateway(Problem):
    status, code, title = 502, "bad_gateway", "The service behind the gateway gave no usable answer"


class Unavailable(_Retryable):
    status, code, title = 503, "unavailable", "This is not available at the moment"


class DeadlineExceeded(Problem):
    status, code, title = 504, "deadline_exceeded", "The request's deadline has passed"
