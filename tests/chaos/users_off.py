"""Users with one of its protections switched off, or made to die at a moment: `python -m tests.chaos.users_off WHAT[,WHAT]`.

Only so that the tests of faults can show that each would fail without the protection that it is about.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import services.users.domain.reads as reads_module
import services.users.domain.relay as relay_module
import shared.cache.redis as redis_module
from services.users.adapters.postgres import connections, pool
from services.users.adapters.postgres.outbox import PostgresLine
from services.users.app import create
from services.users.settings import UsersSettings
from shared.breaker import BreakerConfig
from shared.bus.base import Append
from shared.cache.line import Line
from shared.revocation import RevocationFeed
from shared.serve import main

LONG_S = 60.0


def store_timeouts() -> None:
    """Wait for PostgreSQL as long as it takes."""
    pool._bounded_s = lambda _: LONG_S
    connections.RELEASE_TIMEOUT_S = reads_module.LOAD_TIMEOUT_S = LONG_S


def cache_bounds() -> None:
    """Wait for Redis as long as the driver would, and never leave it alone."""
    redis_module.SOCKET_WAIT_S = redis_module.CALL_WAIT_S = redis_module.TOTAL_WAIT_S = 3.0
    redis_module.BREAKER = BreakerConfig(window=1_000_000, volume_min=1_000_000)


def message_ids() -> None:
    """Let the bus not know an event again."""
    relay_module.Append = lambda subject, data, _: Append(subject, data)  # type: ignore[attr-defined,assignment]


def take_over() -> None:
    """Never ask again whether to lead."""
    relay_module.LEAD_POLL_S = 3600.0


def vouching() -> None:
    """Believe what is in memory whether the bus answers or not."""
    Line.vouches = lambda *_: True  # type: ignore[assignment,method-assign]


def reading_back() -> None:
    """Hear of ended sessions only while listening."""

    async def heard(*_: object) -> bool:
        return True

    RevocationFeed._caught_up = heard  # type: ignore[method-assign]


def dies_between_publish_and_delete() -> None:
    """Be killed, the first time, when the bus has the events and the outbox too."""
    mark = Path(os.environ["CHAOS_FOLDER"]) / "died"
    done = PostgresLine.done

    async def die(line: PostgresLine, event_ids: Sequence[str]) -> None:
        if len(event_ids) > 1 and not mark.exists():
            mark.write_text(" ".join(event_ids))
            os.kill(os.getpid(), signal.SIGKILL)
        await done(line, event_ids)

    PostgresLine.done = die  # type: ignore[method-assign]


WHAT: dict[str, Callable[[], None]] = {
    "store-timeouts": store_timeouts,
    "cache-bounds": cache_bounds,
    "message-ids": message_ids,
    "take-over": take_over,
    "vouching": vouching,
    "reading-back": reading_back,
    "dies": dies_between_publish_and_delete,
}

if __name__ == "__main__":
    for what in sys.argv.pop(1).split(","):
        WHAT[what]()
    main(UsersSettings, create)
