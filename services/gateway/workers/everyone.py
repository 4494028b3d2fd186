"""All workers at once, for operators: one picture of them, one action in each."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson
import structlog
from prometheus_client import Counter

from services.gateway.domain.overview import merge
from services.gateway.workers.siblings import Reply, Siblings
from shared.errors import Problem

VERB = "operate"
"""Its payload is JSON: what `Operated.do` takes; so is the reply."""

ACT_TIMEOUT_S = 5.0
"""For the other workers; reading a file of a thousand routes takes some 50 ms."""

View = dict[str, Any]

log = structlog.get_logger()


class Operated(Protocol):
    """One worker's part: see lane/operating.py."""

    async def do(self, name: str, **arguments: Any) -> Any: ...
    def hold(self, held: Mapping[str, Any]) -> None: ...


class Workers:
    """Asks and tells all workers."""

    def __init__(
        self, operated: Operated, siblings: Siblings, *, tell_parent: Callable[[], None] | None = None
    ) -> None:
        """`tell_parent` is called after a reload: workers to come start with what the parent read last."""
        self._operated = operated
        self._siblings = siblings
        self._tell_parent = tell_parent
        self._under_way: set[asyncio.Task[View]] = set()
        self.actions = Counter(
            "gateway_admin_actions", "What operators did through /admin/gateway.", ["action"], registry=None
        )

    async def view(self, name: str) -> View:
        """Return what all workers say of one thing, and which said nothing."""
        own = await self._operated.do(name)
        replies = await self._siblings.gather(VERB, orjson.dumps({"name": name}), others_only=True)
        found = {reply.worker: orjson.loads(reply.body) for reply in replies if reply.body is not None}
        views = dict(sorted({self._siblings.number: own, **found}.items()))
        return {"workers": _workers(list(views), replies), name: merge(views)}

    async def act(self, operator: str, name: str, **arguments: Any) -> View:
        """Do something here and then in all others. Raises what it raises here, and then does nothing in the others.

        What has begun is finished and leaves its audit line, also where nobody waits for it any more: a client sets its own deadline.
        """
        task = asyncio.get_running_loop().create_task(self._act(operator, name, arguments), name=f"operate-{name}")
        self._under_way.add(task)
        task.add_done_callback(self._on_end)
        return await asyncio.shield(task)

    def _on_end(self, task: asyncio.Task[View]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Seen here for the case that nobody waits for it; its line is written.
            task.exception()

    async def _act(self, operator: str, name: str, arguments: Mapping[str, Any]) -> View:
        self.actions.labels(name).inc()
        # A line's own `service` is the gateway.
        said = {("upstream" if key == "service" else key): value for key, value in arguments.items()}
        said |= {"action": name, "operator": operator}
        try:
            own = await self._operated.do(name, **arguments)
        except Problem as problem:
            log.info("audit", **said, refused=problem.problem_code)
            raise
        except BaseException as error:
            log.info("audit", **said, failed=type(error).__name__)
            raise
        if name == "reload" and self._tell_parent is not None:
            # Before the others: one that starts meanwhile is reached by what follows.
            self._tell_parent()
        replies = await self._siblings.gather(
            VERB, orjson.dumps({"name": name, **arguments}), timeout_s=ACT_TIMEOUT_S, others_only=True
        )
        done = sorted((self._siblings.number, *(reply.worker for reply in replies if reply.body is not None)))
        workers = _workers(done, replies)
        log.info("audit", **said, **own, workers=workers)
        return {"action": name, **arguments, **own, "workers": workers}

    async def inherit(self) -> None:
        """Hold what the others hold by hand: for a worker that has just started, in whose place another was told so."""
        for reply in await self._siblings.gather(VERB, orjson.dumps({"name": "held"}), others_only=True):
            if reply.body is not None:
                self._operated.hold(orjson.loads(reply.body))


def _workers(done: Sequence[int], replies: Sequence[Reply]) -> View:
    failed = {str(reply.worker): reply.problem for reply in replies if reply.body is None}
    return {"answered": list(done), **({"failed": failed} if failed else {})}
