"""The channel between workers, and one exposition out of several."""

import asyncio
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.gateway.workers.exposition import VERB, merge, of_all
from services.gateway.workers.siblings import PAYLOAD_BYTES_MAX, SILENT, Reply, Siblings, open_channels
from shared.errors import Conflict

STRANGER = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as found:
    found.connect("\\0" + sys.argv[1])
    try:
        found.sendall(b"\\x04\\0\\0\\0\\0tell")
        print(found.recv(100) or "closed")
    except ConnectionError:
        print("closed")
"""


class Group:
    """Workers of one process: enough, since they meet only over their sockets."""

    def __init__(self, count: int) -> None:
        channels = open_channels(count)
        self.addresses = tuple(channels)
        self.listeners = list(channels.values())
        self.leaving = [asyncio.Event() for _ in channels]
        self.members = [Siblings(n, self.addresses, sock) for n, sock in enumerate(self.listeners, start=1)]
        self.tasks: list[asyncio.Task[None]] = []

    def serve(self, *numbers: int) -> None:
        for number in numbers:
            work = self.members[number - 1].serve(self.leaving[number - 1])
            self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for listener in self.listeners:
            listener.close()


@pytest.fixture
async def group():
    made = Group(3)

    def tells(number: int):
        async def tell(payload: bytes) -> bytes:
            return b"%d heard %s" % (number, payload)

        return tell

    for member in made.members:
        member.on("tell", tells(member.number))
    yield made
    await made.close()


async def test_every_worker_answers_in_the_order_of_their_numbers(group):
    group.serve(1, 2, 3)
    for member in group.members:
        assert await member.gather("tell", b"a" * PAYLOAD_BYTES_MAX) == [
            Reply(number, b"%d heard %s" % (number, b"a" * PAYLOAD_BYTES_MAX)) for number in (1, 2, 3)
        ]


async def test_a_process_alone_answers_itself():
    alone = Siblings()

    async def tell(payload: bytes) -> bytes:
        return payload

    alone.on("tell", tell)
    assert (alone.number, alone.count) == (1, 1)
    assert await alone.gather("tell", b"x") == [Reply(1, b"x")]
    await alone.serve(asyncio.Event())


async def test_a_worker_that_does_not_answer_is_told_apart_and_delays_nobody_else(group):
    group.serve(1, 2)
    assert await group.members[0].gather("tell", timeout_s=0.05) == [
        Reply(1, b"1 heard "),
        Reply(2, b"2 heard "),
        Reply(3, None, SILENT),
    ]


async def test_a_request_waits_for_the_successor_of_a_worker(group):
    group.serve(1, 2)
    asked = asyncio.get_running_loop().create_task(group.members[0].gather("tell", timeout_s=5))
    group.serve(3)
    assert [reply.body for reply in await asked] == [b"1 heard ", b"2 heard ", b"3 heard "]


async def test_a_worker_that_leaves_sends_questions_about_its_seat_to_its_successor(group):
    inherited = group.listeners[0].dup()
    successor = Siblings(1, group.addresses, inherited)

    async def tell(_: bytes) -> bytes:
        return b"the successor"

    successor.on("tell", tell)
    group.serve(1, 2, 3)
    await group.members[1].gather("tell")
    group.leaving[0].set()
    await group.tasks[0]
    group.tasks.append(asyncio.get_running_loop().create_task(successor.serve(asyncio.Event())))
    assert (await group.members[0].gather("tell"))[0].body == b"the successor"
    assert (await group.members[2].gather("tell"))[0].body == b"the successor"
    inherited.close()


async def test_a_worker_that_leaves_without_a_successor_answers_for_itself(group):
    group.serve(1)
    group.leaving[0].set()
    await group.tasks[0]
    for listener in group.listeners:
        listener.close()
    assert await group.members[0].gather("tell") == [
        Reply(1, b"1 heard "),
        Reply(2, None, SILENT),
        Reply(3, None, SILENT),
    ]


async def test_a_refusal_and_a_fault_reach_the_asker_as_its_problem(group):
    async def refuse(_: bytes) -> bytes:
        raise Conflict("it is open already")

    async def fail(_: bytes) -> bytes:
        raise RuntimeError("a secret")

    for member in group.members:
        member.on("refuse", refuse)
        member.on("fail", fail)
    group.serve(1, 2, 3)
    ask = group.members[0].gather
    assert {reply.problem for reply in await ask("refuse")} == {str(Conflict("it is open already"))}
    assert {reply.problem for reply in await ask("fail")} == {"internal fault"}
    assert {reply.problem for reply in await ask("unheard of")} == {"unknown verb"}
    assert {reply.problem for reply in (await ask("tell", b"a" * (PAYLOAD_BYTES_MAX + 1)))[1:]} == {
        "the payload is too long"
    }


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_not_answered(group):
    group.serve(1)
    found = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-S", "-c", STRANGER, group.addresses[0][1:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    assert (found.stdout, found.stderr) == ("closed\n", "")


def exposition(counts: dict[tuple[str, str], float]) -> bytes:
    registry = CollectorRegistry()
    counter = Counter("answers", "Help with {braces} and spaces.", ("a", "b"), registry=registry)
    Counter("plain", "No labels.", registry=registry).inc(len(counts))
    for labels, value in counts.items():
        counter.labels(*labels).inc(value)
    return generate_latest(registry)


def samples(text: bytes, name: str) -> dict[tuple[str, ...], float]:
    """The values of a series by its labels' values, as Prometheus's own rules read them."""
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == name
    }


# The parser of prometheus_client reads lines at every character that str.splitlines knows; Prometheus only at \n.
values = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=8)
counts = st.dictionaries(st.tuples(values, values), st.integers(1, 10**6).map(float), max_size=5)


@given(st.dictionaries(st.integers(1, 64), counts, max_size=4))
def test_every_series_of_every_worker_is_in_the_merged_exposition_once(workers):
    merged = merge({number: exposition(found) for number, found in workers.items()})
    assert samples(merged, "answers_total") == {
        (a, b, str(number)): value for number, found in workers.items() for (a, b), value in found.items()
    }
    assert samples(merged, "plain_total") == {(str(number),): len(found) for number, found in workers.items()}
    heads = [line for line in merged.split(b"\n") if line.startswith(b"# TYPE ")]
    assert len(heads) == len(set(heads))


async def test_a_scrape_counts_the_workers_that_it_misses(group):
    for member in group.members:
        text = exposition({("x", "y"): member.number})

        async def tell(_: bytes, text: bytes = text) -> bytes:
            return text

        member.on(VERB, tell)
    group.serve(1, 2)
    group.listeners[2].close()
    found = await of_all(group.members[1])
    assert samples(found, "answers_total") == {("x", "y", "1"): 1, ("x", "y", "2"): 2}
    assert samples(found, "gateway_workers") == {("answering",): 2, ("silent",): 1}
