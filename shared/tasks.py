"""Background work with an owner: named, restarted when it fails, stopped and awaited when the owner closes."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

import structlog

RESTART_WAIT_S_MAX = 10.0
STOP_WAIT_S = 5.0


class Supervisor:
    """Owns a service's background tasks.

    A task that raises is logged and started again after 0.1 s, doubling to 10 s; one that returns is finished. Leaving the block
    cancels all and waits up to 5 s for them.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._log = structlog.get_logger()

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work()` under `name`. Raises ValueError when a task of that name is running."""
        if name in self._tasks and not self._tasks[name].done():
            raise ValueError(f"a task named {name} is already running")
        self._tasks[name] = asyncio.get_running_loop().create_task(self._run(name, work), name=name)

    async def _run(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        wait_s = 0.1
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await work()
            except Exception:  # noqa: BLE001 - the edge of a task: logged, then started again
                if asyncio.get_running_loop().time() - started > RESTART_WAIT_S_MAX:
                    wait_s = 0.1
                self._log.exception("task_failed", task=name, again_in_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RESTART_WAIT_S_MAX)
            else:
                return

    async def __aenter__(self) -> "Supervisor":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel every task and wait for their end, at most 5 s."""
        running = [task for task in self._tasks.values() if not task.done()]
        for task in running:
            task.cancel()
        if running:
            _, late = await asyncio.wait(running, timeout=STOP_WAIT_S)
            for task in late:
                self._log.error("task_does_not_stop", task=task.get_name())
        self._tasks.clear()
