"""The policies of a route, outermost first: log, metrics, addresses, sign-in, limits, deadline, the service."""

import time
from collections.abc import Awaitable
from urllib.parse import parse_qsl

from services.gateway.domain.admission import check_allowed, check_role, verify
from services.gateway.domain.route_limits import LimitOutcome, RouteLimits
from services.gateway.domain.tickets import Tickets, ticket_in
from services.gateway.lane.access import NO_ANSWER, AccessLog
from services.gateway.lane.call import Call
from services.gateway.lane.upstream import Upstream
from services.gateway.model import Auth, Priority, Route
from shared.errors import BodyTooLarge, DeadlineExceeded, Unauthorized
from shared.identity import bearer_of
from shared.metrics import KNOWN_METHODS, UNMATCHED, Metrics, Series
from shared.tokens import TokenVerifier


class Logged:
    """Every call leaves a line."""

    def __init__(self, log: AccessLog, route: Route | None) -> None:
        self._log = log
        self._route = route.path if route is not None else UNMATCHED

    def after(self, call: Call) -> None:
        self._log.write(call, self._route)


class Counted:
    """Every call is counted and timed."""

    def __init__(self, metrics: Metrics, route: Route | None) -> None:
        self._requests = metrics.requests
        self._route = route.path if route is not None else UNMATCHED
        # Looking a series up by its labels costs more than counting in it. Bounded: unknown methods share one.
        self._series: dict[str, Series] = {}

    def before(self, call: Call) -> None:
        self._requests.active[call.kind] += 1

    def after(self, call: Call) -> None:
        self._requests.active[call.kind] -= 1
        series = self._series.get(call.method)
        if series is None:
            series = self._requests.of(call.method, self._route)
            if call.method in KNOWN_METHODS:
                self._series[call.method] = series
        series.count(call.status or NO_ANSWER)
        if call.kind == "http":
            series.observe(call.ended_at - call.started_at)


class SignIn:
    """The token that the route asks for; one verified before is only looked up."""

    def __init__(self, verifier: TokenVerifier, *, auth: Auth, has_query_token: bool) -> None:
        self._verifier = verifier
        self.auth = auth
        self._has_query_token = has_query_token

    def before(self, call: Call) -> Awaitable[None] | None:
        authorization = call.head.authorization
        # As nearly every client writes it, its token is looked up with no more ado: only what was verified before is found.
        is_plain = authorization[:7] == b"Bearer "
        identity = self._verifier.remembered(authorization[7:].decode("latin-1")) if is_plain else None
        if identity is None:
            token = self._token_of(call)
            identity = self._verifier.remembered(token)
            if identity is None:
                return self._verify(call, token)
        call.identity = identity
        call.subject = identity.subject
        check_role(identity, self.auth)
        return None

    async def _verify(self, call: Call, token: str) -> None:
        identity = await verify(self._verifier, token)
        call.identity = identity
        call.subject = identity.subject
        check_role(identity, self.auth)

    def _token_of(self, call: Call) -> str:
        if not call.head.authorization and self._has_query_token:
            for name, value in parse_qsl(call.query.decode("latin-1")):
                if name == "token" and value:
                    return value
            raise Unauthorized
        return bearer_of(call.head.authorization.decode("latin-1"))


class Ticketed:
    """A ticket in the query is spent here; without one, or with a token that goes before it, the route's own sign-in decides."""

    def __init__(self, tickets: Tickets, sign_in: SignIn) -> None:
        self._tickets = tickets
        self._sign_in = sign_in

    def before(self, call: Call) -> Awaitable[None] | None:
        # By decoded names, as the service reads them: one it found and this did not would be good more than once.
        ticket = ticket_in(call.query.decode("latin-1")) if call.query and not call.head.authorization else ""
        if ticket:
            return self._spend(call, ticket)
        return self._sign_in.before(call) if self._sign_in.auth != "public" else None

    async def _spend(self, call: Call, ticket: str) -> None:
        identity = await self._tickets.spend(ticket)
        call.identity = identity
        call.subject = identity.subject
        check_role(identity, self._sign_in.auth)


class Allowed:
    """Only listed addresses, where any are listed."""

    def before(self, call: Call) -> None:
        check_allowed(call.client)


class Limited:
    """The route's rate limits; an answer says what they allow and what is left, whoever gives it."""

    def __init__(self, limits: RouteLimits) -> None:
        self._limits = limits

    def before(self, call: Call) -> Awaitable[None] | None:
        client = call.client
        if client.is_exempt:
            return None
        found = self._limits.check(call.identity, client.key)
        if isinstance(found, LimitOutcome):
            self._take(call, found)
            return None
        return self._wait(call, found)

    async def _wait(self, call: Call, found: Awaitable[LimitOutcome]) -> None:
        self._take(call, await found)

    @staticmethod
    def _take(call: Call, outcome: LimitOutcome) -> None:
        call.limits = outcome
        call.added += outcome.headers
        if outcome.refused is not None:
            raise outcome.refused

    def after(self, call: Call) -> None:
        if call.limits is not None:
            call.limits.settle(call.status)


class Due:
    """No work that nobody waits for, and no body over the route's limit: both known before anything is read."""

    def __init__(self, route: Route) -> None:
        self._body_bytes_max = route.body_bytes_max

    def before(self, call: Call) -> None:
        if call.due_at <= time.monotonic():
            raise DeadlineExceeded("the deadline had passed before the work began")
        length = call.head.length
        if length is not None and length > self._body_bytes_max:
            raise BodyTooLarge(f"a body may have at most {self._body_bytes_max} bytes")


class Guarded:
    """Nothing is begun at a service that failed lately or has all it can do."""

    def __init__(self, upstream: Upstream, priority: Priority) -> None:
        self._upstream = upstream
        self._priority = priority

    def before(self, _: Call) -> None:
        self._upstream.admit(self._priority)
