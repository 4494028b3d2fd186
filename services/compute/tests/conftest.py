"""The pool's tests run on both event loops: uvloop, which serves, and asyncio's own, whose subprocesses work otherwise."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

Factories = Mapping[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Factories:
    factories: Factories = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    if item.path.name == "test_supervisor.py":
        return factories
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # The second loop doubles the time; `make check` is content with the one that serves.
        if item.path.name == "test_supervisor.py" and "[asyncio" in item.name:
            item.add_marker(pytest.mark.slow)
