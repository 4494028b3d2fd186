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
    """Whether this replica may be sent requests: not draining, and every required check passes."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self._checks: dict[str, Check] = {}
        self._found: dict[str, str] = {}
        self._found_at = -1e9
        self._lock = asyncio.Lock()
        self._log = structlog.get_logger()

    def require(self, checks: Mapping[str, Check]) -> None:
        """Add checks by the name of what they ask."""
        self._checks.update(checks)

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
        return "ok"

    async def report(self) -> tuple[bool, dict[str, object]]:
        """Return whether to send requests here, and `{"state": "ready" | "draining" | "not_ready", "checks": {...}}`."""
        checks = await self.states()
        if self.draining.is_set():
            return False, {"state": "draining", "checks": checks}
        is_ready = all(state == "ok" for state in checks.values())
        return is_ready, {"state": "ready" if is_ready else "not_ready", "checks": checks}
