"""The limits of one route, compiled once: which apply to whom, what each request takes, and what its answer says of them.

The header fields are those of draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy: "signed-in";q=600;w=60` is the rule,
`RateLimit: "signed-in";r=599;t=1` what is left of it (`r`) and in how many seconds there is more (`t`).
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor

from services.gateway.domain.gcra import SLACK
from services.gateway.domain.limiting import Limiter
from services.gateway.domain.metering import Meter, Verdict
from services.gateway.model import Limit, Route
from shared.errors import TooManyRequests
from shared.tokens import Identity

Header = tuple[bytes, bytes]


OUTCOMES_MAX = 2048
"""Of one quota: what is said with so many left is written once."""


class LimitOutcome:
    """What the limits say of one request: `refused` where it must not pass, and the `headers` of its answer either way.

    `settle` must be called once the answer's status is known, or with 0 where there is none: some limits count only certain answers.
    """

    __slots__ = ("headers",)
    refused: TooManyRequests | None = None

    def __init__(self, headers: tuple[Header, ...]) -> None:
        self.headers = headers

    def settle(self, status: int) -> None:
        """Count what this status counts for; a second call does nothing."""


class _Refused(LimitOutcome):
    __slots__ = ("refused",)

    def __init__(self, headers: tuple[Header, ...], refused: TooManyRequests) -> None:
        self.headers = headers
        self.refused = refused


class _Reserved(LimitOutcome):
    """Let in, while nobody knows yet whether it will count."""

    __slots__ = ("_cost", "_verdicts")

    def __init__(self, headers: tuple[Header, ...], verdicts: Sequence[Verdict], cost: int) -> None:
        self.headers = headers
        self._verdicts = verdicts
        self._cost = cost

    def settle(self, status: int) -> None:
        verdicts, self._verdicts = self._verdicts, ()
        for verdict in verdicts:
            verdict.settle(self._cost, is_counted=status == 401)


_UNLIMITED = LimitOutcome(())


class _Quota:
    """One limit as one kind of client meets it."""

    __slots__ = ("ask", "by", "is_quick", "is_reserved", "meter", "place", "policy", "prefix", "shown")

    def __init__(self, limit: Limit, meter: Meter, route: Route, *, is_signed_in: bool) -> None:
        self.meter = meter
        self.is_reserved = limit.counts == "unauthorized"
        self.ask: Callable[[str, int], Verdict | None] = meter.reserve if self.is_reserved else meter.take
        # With a token or more coming back each second, there is always more in 1 s: the header depends on what is left alone.
        self.is_quick = not self.is_reserved and meter.rate.interval_s <= 1
        # Who is not signed in is no user: of those, each address has a quota.
        self.by = "address" if limit.by == "user" and not is_signed_in else limit.by
        self.place = route.path
        self.policy = f'"{limit.name}";q={meter.rate.quota};w={max(1, round(meter.rate.window_s))}'.encode()
        self.prefix = f'"{limit.name}";r='.encode()
        self.shown: dict[int, bytes] = {}

    def subject(self, identity: Identity | None, address: str) -> str:
        if self.by == "user" and identity is not None:
            return identity.subject
        return address if self.by == "address" else self.place

    def show(self, verdict: Verdict) -> bytes:
        """Return this limit's part of the header RateLimit."""
        left = verdict.free + SLACK
        if self.is_quick and not verdict.wait_s:
            whole = int(left)
            return self.shown.get(whole) or self._write(whole)
        more_in_s = verdict.wait_s or (floor(left) + 1 - left) * self.meter.rate.interval_s
        return b"%b%d;t=%d" % (self.prefix, max(0, left), max(1, ceil(more_in_s)))

    def _write(self, left: int) -> bytes:
        text = b"%b%d;t=1" % (self.prefix, max(0, left))
        if len(self.shown) < OUTCOMES_MAX:
            self.shown[left] = text
        return text


@dataclass(frozen=True, slots=True)
class _Line:
    """The limits that one kind of client meets, in their order."""

    quotas: tuple[_Quota, ...]
    policy: Header
    single: _Quota | None
    """The one limit, where there is just one and it counts every request: the usual case, and the quick one."""
    has_reserved: bool

    outcomes: dict[int, LimitOutcome] = field(default_factory=dict)


class RouteLimits:
    """Checks the requests of one route."""

    def __init__(self, route: Route, limits: Iterable[Limit], limiter: Limiter) -> None:
        """`limits` are those the route names, in its order."""
        self._cost = route.cost
        self._clock = limiter.clock
        limits = tuple(limits)

        def line(tier: str, *, is_signed_in: bool) -> _Line:
            left_out = "anonymous" if is_signed_in else "signed_in"
            quotas = tuple(
                _Quota(limit, limiter.meter(limit, limit.tiers.get(tier)), route, is_signed_in=is_signed_in)
                for limit in limits
                if limit.applies_to != left_out
            )
            policy = b", ".join(quota.policy for quota in quotas)
            single = quotas[0] if len(quotas) == 1 and quotas[0].is_quick else None
            has_reserved = any(quota.is_reserved for quota in quotas)
            return _Line(quotas, (b"ratelimit-policy", policy), single, has_reserved)

        self._anonymous = line("", is_signed_in=False)
        self._signed_in = line("", is_signed_in=True)
        self._tiers = {tier: line(tier, is_signed_in=True) for limit in limits for tier in limit.tiers}

    def check(self, identity: Identity | None, address: str) -> LimitOutcome | Awaitable[LimitOutcome]:
        """Take what a request costs from each of its limits; an awaitable where the store has to be asked.

        `address` is the client's as AddressBook names it for limits. What a later limit refuses is given back to the earlier ones.
        """
        if identity is None:
            line = self._anonymous
        elif self._tiers:
            line = self._tiers.get(identity.tier or identity.role, self._signed_in)
        else:
            line = self._signed_in
        single = line.single
        if single is None:
            return self._check_all(line, identity, address)
        if single.by == "user" and identity is not None:
            verdict = single.ask(identity.subject, self._cost)
        else:
            verdict = single.ask(address if single.by == "address" else single.place, self._cost)
        if verdict is None:
            return self._check_slowly(line, identity, address, [])
        if verdict.wait_s:
            return self._conclude(line, [verdict], 0.0)
        left = int(verdict.free + SLACK)
        return line.outcomes.get(left) or self._write(line, verdict, left)

    def _write(self, line: _Line, verdict: Verdict, left: int) -> LimitOutcome:
        outcome = self._conclude(line, [verdict], 0.0)
        if len(line.outcomes) < OUTCOMES_MAX:
            line.outcomes[left] = outcome
        return outcome

    def _check_all(
        self, line: _Line, identity: Identity | None, address: str
    ) -> LimitOutcome | Awaitable[LimitOutcome]:
        if not line.quotas:
            return _UNLIMITED
        cost = self._cost
        verdicts: list[Verdict] = []
        shown: list[bytes] = []
        for quota in line.quotas:
            # `quota.subject` and `quota.show`, without the calls: this is done for every request.
            if quota.by == "user" and identity is not None:
                verdict = quota.ask(identity.subject, cost)
            else:
                verdict = quota.ask(address if quota.by == "address" else quota.place, cost)
            if verdict is None:
                return self._check_slowly(line, identity, address, verdicts)
            verdicts.append(verdict)
            if verdict.wait_s:
                return self._conclude(line, verdicts, 0.0)
            shown.append(quota.shown.get(int(verdict.free + SLACK)) or quota.show(verdict))
        if line.has_reserved:
            return self._conclude(line, verdicts, 0.0)
        return LimitOutcome((line.policy, (b"ratelimit", b", ".join(shown))))

    async def _check_slowly(
        self, line: _Line, identity: Identity | None, address: str, verdicts: list[Verdict]
    ) -> LimitOutcome:
        """Go on where the store has to be asked."""
        started_at = self._clock()
        try:
            for quota in line.quotas[len(verdicts) :]:
                subject = quota.subject(identity, address)
                verdict = quota.ask(subject, self._cost) or await quota.meter.wait(
                    subject, self._cost, is_reserved=quota.is_reserved
                )
                verdicts.append(verdict)
                if verdict.wait_s:
                    break
        except BaseException:
            # The client has gone: whom it waited for does not matter any more.
            self._undo(line, verdicts, self._clock() - started_at)
            raise
        return self._conclude(line, verdicts, self._clock() - started_at)

    def _conclude(self, line: _Line, verdicts: list[Verdict], elapsed_s: float) -> LimitOutcome:
        last = verdicts[-1]
        shown = b", ".join([quota.show(verdict) for quota, verdict in zip(line.quotas, verdicts, strict=False)])
        headers = (line.policy, (b"ratelimit", shown))
        if last.wait_s:
            self._undo(line, verdicts[:-1], elapsed_s)
            return _Refused(headers, _refusal(line.quotas[len(verdicts) - 1].meter, last))
        if not line.has_reserved:
            return LimitOutcome(headers)
        reserved = [verdict for quota, verdict in zip(line.quotas, verdicts, strict=True) if quota.is_reserved]
        return _Reserved(headers, reserved, self._cost)

    def _undo(self, line: _Line, verdicts: Sequence[Verdict], elapsed_s: float) -> None:
        for quota, verdict in zip(line.quotas, verdicts, strict=False):
            if quota.is_reserved:
                verdict.settle(self._cost, is_counted=False)
            elif not verdict.wait_s:
                verdict.undo(self._cost, elapsed_s)


def _refusal(meter: Meter, verdict: Verdict) -> TooManyRequests:
    wait_s = max(1, ceil(verdict.wait_s))
    return TooManyRequests(
        f"the limit {meter.name} allows {meter.rate.quota} in {meter.rate.window_s:g} s; try again in {wait_s} s",
        retry_after_s=wait_s,
        code="rate_limited",
    )
