"""Our users service with a watch on its event loop: `python -m tests.bench.watched`.

`GET /bench/lag` answers with how many seconds late the loop was, each time that it looked since it was last asked.
"""

import asyncio
import json
import time
from array import array

from starlette.types import Receive, Scope, Send

from services.users.app import create
from services.users.settings import UsersSettings
from shared.app import Application
from shared.serve import main

PATH = "/bench/lag"
EVERY_S = 0.002
"""The loop's own timers are of whole milliseconds."""


class Watch:
    """Sleeps again and again while the application runs, and keeps how many seconds too late it woke."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._late_s = array("d")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            # Ended with the application's own background work.
            self._app.runtime.tasks.start("loop-watch", self._watch)
        if scope["type"] == "http" and scope["path"] == PATH:
            return await self._tell(send)
        return await self._app(scope, receive, send)

    async def _watch(self) -> None:
        while True:
            # Not the loop's own clock, which stands still while a callback runs.
            due = time.perf_counter() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self._late_s.append(max(0.0, time.perf_counter() - due))

    async def _tell(self, send: Send) -> None:
        seen, self._late_s = self._late_s, array("d")
        body = json.dumps(list(seen)).encode()
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def create_watched(settings: UsersSettings) -> Application:
    app = create(settings)
    return Application(app.fastapi, Watch(app), app.runtime, settings)


if __name__ == "__main__":
    main(UsersSettings, create_watched)
