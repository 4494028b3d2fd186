"""Who may do what: every route of the service in one table, and the scopes that a role holds.

A route that is not here does not start. Owners act on their own records; what belongs to somebody else does not exist for who
lacks the scope, so the answer is 404 and not 403.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Access(StrEnum):
    """`PUBLIC`: anybody. `SIGNED_IN`: any token, about oneself. `OWNER`: the user in the path, or the scope. `SCOPE`: only that."""

    PUBLIC = "public"
    SIGNED_IN = "signed in"
    OWNER = "owner"
    SCOPE = "scope"


class Scope(StrEnum):
    """What a role can be allowed beyond its own records."""

    USERS_READ = "users:read"
    USERS_WRITE = "users:write"
    USERS_RESTORE = "users:restore"
    USERS_PURGE = "users:purge"
    ROLES_WRITE = "roles:write"
    SESSIONS_END = "sessions:end"
    SESSIONS_READ = "sessions:read"
    AUDIT_READ = "audit:read"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"


SCOPES_OF: Mapping[str, frozenset[Scope]] = MappingProxyType({"user": frozenset(), "admin": frozenset(Scope)})
"""By role; a role that is not here holds none."""


@dataclass(frozen=True, slots=True)
class Rule:
    access: Access
    scope: Scope | None = None


_PUBLIC = Rule(Access.PUBLIC)
_SIGNED_IN = Rule(Access.SIGNED_IN)


def _owner(scope: Scope) -> Rule:
    return Rule(Access.OWNER, scope)


def _scope(scope: Scope) -> Rule:
    return Rule(Access.SCOPE, scope)


RULES: Mapping[tuple[str, str], Rule] = MappingProxyType(
    {
        ("POST", "/users"): _PUBLIC,
        ("POST", "/users/batch"): _scope(Scope.USERS_WRITE),
        ("GET", "/users"): _scope(Scope.USERS_READ),
        ("OPTIONS", "/users"): _PUBLIC,
        ("GET", "/users/{user_id}"): _owner(Scope.USERS_READ),
        ("PUT", "/users/{user_id}"): _owner(Scope.USERS_WRITE),
        ("PATCH", "/users/{user_id}"): _owner(Scope.USERS_WRITE),
        ("DELETE", "/users/{user_id}"): _owner(Scope.USERS_WRITE),
        ("OPTIONS", "/users/{user_id}"): _PUBLIC,
        ("POST", "/users/{user_id}/restore"): _scope(Scope.USERS_RESTORE),
        ("GET", "/users/{user_id}/sessions"): _scope(Scope.SESSIONS_READ),
        ("DELETE", "/users/{user_id}/sessions"): _scope(Scope.SESSIONS_END),
        ("GET", "/audit"): _scope(Scope.AUDIT_READ),
        ("POST", "/auth/token"): _PUBLIC,
        ("POST", "/auth/refresh"): _PUBLIC,
        ("POST", "/auth/email/verify/request"): _SIGNED_IN,
        ("POST", "/auth/email/verify"): _PUBLIC,
        ("POST", "/auth/password/forgot"): _PUBLIC,
        ("POST", "/auth/password/reset"): _PUBLIC,
        ("GET", "/auth/me"): _SIGNED_IN,
        ("POST", "/auth/logout"): _SIGNED_IN,
        ("POST", "/auth/ticket"): _SIGNED_IN,
        ("GET", "/auth/sessions"): _SIGNED_IN,
        ("DELETE", "/auth/sessions"): _SIGNED_IN,
        ("DELETE", "/auth/sessions/{session_id}"): _SIGNED_IN,
        ("GET", "/auth/keys"): _scope(Scope.KEYS_READ),
        ("POST", "/auth/keys/rotate"): _scope(Scope.KEYS_WRITE),
        ("DELETE", "/auth/keys/{kid}"): _scope(Scope.KEYS_WRITE),
        ("GET", "/.well-known/jwks.json"): _PUBLIC,
    }
)
"""By method and path; HEAD follows GET."""


def rule_of(method: str, path: str) -> Rule:
    """Return the rule of a route. Raises LookupError where there is none."""
    found = RULES.get(("GET" if method == "HEAD" else method, path))
    if found is None:
        raise LookupError(f"{method} {path} has no rule in services/users/domain/policy.py")
    return found


def holds(role: str, scope: Scope) -> bool:
    """Tell whether a role holds a scope."""
    return scope in SCOPES_OF.get(role, frozenset())
