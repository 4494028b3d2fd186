"""How fast the relay of users empties an outbox onto a bus that syncs every write to disk: `python -m tests.bench.users_relay`.

The relay runs in this process, with a real PostgreSQL and NATS; what it brought is counted on the bus.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import asyncpg

from dev import infra
from services.users.adapters.database import open_store
from services.users.domain.events import event_of
from services.users.domain.relay import LOG, OutboxRelay
from services.users.model.records import Event, User
from shared.bus.base import Bus
from shared.bus.connect import connect
from shared.ids import new_id
from shared.tasks import Supervisor
from tests.bench.errors import BenchError

EVENTS = 50_000
USERS = 1_000
ROUNDS = 3
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Drain:
    """One emptied outbox; `cpu_s` is this process's own."""

    events: int
    took_s: float
    cpu_s: float

    @property
    def events_per_s(self) -> float:
        return self.events / self.took_s


class _NoTally:
    """Counts nothing; a Tally."""

    def user_created(self) -> None: ...

    def login(self, result: str) -> None: ...

    def backlog(self, events: int) -> None: ...


async def drain(database_url: str, nats_url: str, events: int = EVENTS) -> Drain:
    """Fill the outbox of a database, start a relay, and time it until nothing waits. Raises BenchError when events are missing."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(database_url, name="bench"))
        bus = await connect(nats_url, name="bench")
        stack.push_async_callback(bus.close)
        await bus.ensure_log(LOG)
        before = await _stored(bus)
        await _fill(database_url, events)
        relay = OutboxRelay(store.outbox, lambda: connect(nats_url, name="bench-relay"), tally=_NoTally())
        tasks = await stack.enter_async_context(Supervisor())
        began_at, cpu_began_s = time.perf_counter(), time.process_time()
        tasks.start("relay", relay.run)
        async with asyncio.timeout(PATIENCE_S):
            # On the bus, because counting rows would cost PostgreSQL more than the relay does.
            while await _stored(bus) < before + events:
                await asyncio.sleep(0.01)
        done = Drain(events, time.perf_counter() - began_at, time.process_time() - cpu_began_s)
        async with asyncio.timeout(PATIENCE_S), store.outbox.line() as line:
            while await line.backlog():
                await asyncio.sleep(0.05)
        came = await _stored(bus) - before
    if came != events:
        raise BenchError(f"the bus has {came} events of {events}")
    return done


async def _fill(database_url: str, events: int) -> None:
    users = [_user(n) for n in range(USERS)]
    made: list[Event] = [event_of(users[n % USERS], "updated", changed=["full_name"]) for n in range(events)]
    connection = await asyncpg.connect(database_url)
    try:
        records = [(event.id, event.subject, event.payload) for event in made]
        await connection.copy_records_to_table("outbox", records=records, columns=["id", "subject", "payload"])
        await connection.execute("ANALYZE outbox")
    finally:
        await connection.close()


def _user(n: int) -> User:
    now = datetime.now(UTC)
    return User(new_id(), f"user{n}", f"user{n}@example.com", None, "user", 1, now, now)


async def _stored(bus: Bus) -> int:
    """Count what the log has of updates: the offsets of one subject are those of the log, when nothing else is written."""
    return await bus.last_offset(LOG.name, "evt.users.user.updated.v1")


def measure(rounds: int = ROUNDS, events: int = EVENTS) -> list[Drain]:
    """Empty so many outboxes, on servers started for it."""
    with infra.start(("nats", "postgres")) as running:
        urls = running.urls
        return [asyncio.run(drain(urls["DATABASE_URL"], urls["NATS_URL"], events)) for _ in range(rounds)]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.users_relay", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--events", type=int, default=EVENTS)
    options = parser.parse_args(argv)
    drains = measure(options.rounds, options.events)
    for each in drains:
        print(
            json.dumps(
                {"events_per_s": round(each.events_per_s), "cpu_us_per_event": round(each.cpu_s / each.events * 1e6, 1)}
            )
        )
    print(f"median {median(each.events_per_s for each in drains):.0f} events/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
