"""Cutting: ends a connection whose client does not read, which ASGI alone cannot."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

EXTENSION = "roundhouse.cut"
CUT_AFTER_S = 12.0
"""A closed connection that still holds unsent bytes then is cut; the server itself would wait for the client for ever."""


class Cuttable:
    """Puts into every scope a function that drops the connection at once, unsent bytes included.

    uvicorn's `send` is a method of an object that has the transport; under another server there is nothing to cut with.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        if transport is not None and scope["type"] in ("http", "websocket"):
            scope.setdefault("extensions", {})[EXTENSION] = transport.abort
        await self._app(scope, receive, send)


def cut(scope: Scope) -> None:
    """Drop the connection of a scope now."""
    abort: Callable[[], None] | None = scope.get("extensions", {}).get(EXTENSION)
    if abort is not None:
        abort()


def cut_later(scope: Scope) -> None:
    """Drop the connection in a while, should it still be there: its closing bytes may never be read."""
    abort: Callable[[], None] | None = scope.get("extensions", {}).get(EXTENSION)
    if abort is not None:
        asyncio.get_running_loop().call_later(CUT_AFTER_S, abort)
