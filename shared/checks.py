"""Readiness: named round trips to what a service needs, bounded, run together and remembered for a moment."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

CHECK_TIMEOUT_S = 1.0
REMEMBER_S = 0.5
"""Probes of several origins arrive together; one round trip answers them all."""

Check = Callable[[], Awaitable[None]]
"""A round trip that returns when the dependency answers and raises when it does not."""


class Readiness:
    """Whether this replica may be sent requests: not draining, and every required check passes or is tolerated."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self._checks: dict[str, Check] = {}
        self._tolerated_s: dict[str, float] = {}
        self._passed_at: dict[str, float] = {}
        self._found: dict[str, str] = {}
        self._found_at = -1e9
        self._lock = asyncio.Lock()
        self._log = structlog.get_logger()

    def require(self, checks: Mapping[str, Check], tolerated_s: Mapping[str, float] | None = None) -> None:
        """Add checks by the name of what they ask.

        One that is tolerated may fail for so many seconds after it last passed: the replica does without meanwhile, and taking all
        of them away for what they all lack would help nobody. Before it has passed once, nothing is tolerated.
        """
        self._checks.update(checks)
        self._tolerated_s.update(tolerated_s or {})

    async def states(self) -> dict[str, str]:
        """Return `{name: "ok" | "failing"}`, at most half a second old."""
        async with self._lock:
            if time.monotonic() - self._found_at > REMEMBER_S:
                names = list(self._checks)
                results = await asyncio.gather(*(self._ask(name) for name in names))
                self._found = dict(zip(names, results, strict=True))
                self._found_at = time.monotonic()
            return dict(self._found)

    async def _ask(self, name: str) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self._checks[name]()
        except Exception as error:  # noqa: BLE001 - whatever a check raises means that it fails
            if self._found.get(name) != "failing":
                self._log.warning("check_failing", check=name, reason=f"{type(error).__name__}: {error}"[:300])
            return "failing"
        self._passed_at[name] = time.monotonic()
        return "ok"

    async def report(self) -> tuple[bool, dict[str, object]]:
        """Return whether to send requests here, and `{"state": "ready" | "draining" | "not_ready", "checks": {...}}`."""
        checks = await self.states()
        if self.draining.is_set():
            return False, {"state": "draining", "checks": checks}
        is_ready = all(state == "ok" or self._is_tolerated(name) for name, state in checks.items())
        return is_ready, {"state": "ready" if is_ready else "not_ready", "checks": checks}

    def _is_tolerated(self, name: str) -> bool:
        passed_at = self._passed_at.get(name)
        return passed_at is not None and time.monotonic() - passed_at < self._tolerated_s.get(name, 0.0)
