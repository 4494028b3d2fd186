"""The policy in front of every route: looked up once when the routes are made, asked before a body is read."""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from services.users.domain.policy import Access, Rule, Scope, holds, rule_of
from shared.errors import Forbidden, NotFound
from shared.identity import signed_in
from shared.tokens import Identity

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class GuardedRoute(APIRoute):
    """A route with its rule from the policy; a route without one cannot be made."""

    def __init__(self, path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, *args, **kwargs)
        self.rules = {method: rule_of(method, self.path_format) for method in self.methods or ()}

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            rule = self.rules[request.method]
            if rule.access is not Access.PUBLIC:
                check(rule, await signed_in(request), request.path_params.get("user_id", ""))
            return await handle(request)

        return guarded


def check(rule: Rule, identity: Identity, user_id: str) -> None:
    """Let somebody who is signed in through, or raise NotFound (the record is not theirs) or Forbidden (it takes a scope)."""
    if rule.access is Access.SIGNED_IN or (rule.access is Access.OWNER and identity.subject == user_id):
        return
    if holds(identity.role, _scope_of(rule)):
        return
    if rule.access is Access.OWNER:
        raise NotFound("there is no such user")
    raise Forbidden(f"this needs the scope {rule.scope}")


def _scope_of(rule: Rule) -> Scope:
    assert rule.scope is not None
    return rule.scope


def guarded(routers: Iterable[APIRouter]) -> list[APIRouter]:
    """Return the routers as they are. Raises TypeError where a route would be open to whoever finds it."""
    found = list(routers)
    for route in (route for router in found for route in router.routes):
        if not isinstance(route, GuardedRoute):
            raise TypeError(
                f"{getattr(route, 'path', route)} is not guarded: its router needs route_class=GuardedRoute"
            )
    return found
