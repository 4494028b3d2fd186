"""Rounds ask everybody at once and bound each."""

import asyncio
from collections.abc import Sequence

from services.health.domain.board import Board
from services.health.domain.rounds import AT_ONCE_MAX, Probe, Rounds
from services.health.model import ProbeFailed, Role, Target


class Fake:
    """A probe that does what it is told."""

    def __init__(self, name: str, outcome: BaseException | None = None, *, gate: asyncio.Event | None = None) -> None:
        self.target = Target(name, Role.REQUIRED)
        self.outcome = outcome
        self.gate = gate
        self.asked = 0
        self.cancelled = 0

    async def check(self) -> None:
        self.asked += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.outcome is not None:
            raise self.outcome


def rounds_of(probes: Sequence[Probe], board: Board, *, timeout_s: float = 5.0) -> Rounds:
    return Rounds(lambda: probes, board, every_s=0.01, timeout_s=timeout_s)


def errors_of(board: Board) -> dict[str, str | None]:
    return {seen.target.component: seen.result.error if seen.result else None for seen in board}


async def test_each_failure_gets_its_word_and_the_others_their_result() -> None:
    board = Board()
    probes = [
        Fake("good"),
        Fake("refused", ProbeFailed("refused")),
        Fake("broken", RuntimeError("a bug of ours")),
        Fake("hanging", gate=asyncio.Event()),
    ]
    await rounds_of(probes, board, timeout_s=0.05).once()
    assert errors_of(board) == {"good": "", "refused": "refused", "broken": "error", "hanging": "timeout"}
    assert probes[3].cancelled == 1


async def test_all_are_asked_at_the_same_time() -> None:
    gate = asyncio.Event()
    probes = [Fake(f"p{n}", gate=gate) for n in range(AT_ONCE_MAX)]
    board = Board()
    async with asyncio.TaskGroup() as group:
        group.create_task(rounds_of(probes, board).once())
        while not all(probe.asked for probe in probes):
            await asyncio.sleep(0)
        assert set(errors_of(board).values()) == {None}, "nobody has answered yet, and everybody is known"
        gate.set()
    assert set(errors_of(board).values()) == {""}


async def test_rounds_go_on_until_cancelled_and_see_new_targets() -> None:
    board = Board()
    probes = [Fake("first")]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(Rounds(lambda: probes, board, every_s=0.001, timeout_s=1).run())
        while probes[0].asked < 3:
            await asyncio.sleep(0)
        probes.append(Fake("second"))
        while probes[1].asked < 3:
            await asyncio.sleep(0)
        running.cancel()
    assert errors_of(board) == {"first": "", "second": ""}


async def test_a_wake_begins_the_next_round_at_once() -> None:
    board = Board()
    probe = Fake("p")
    rounds = Rounds(lambda: [probe], board, every_s=3600, timeout_s=5)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(rounds.run())
        async with asyncio.timeout(5):
            while probe.asked < 1:
                await asyncio.sleep(0)
            rounds.wake()
            while probe.asked < 2:
                await asyncio.sleep(0)
        running.cancel()


async def test_a_round_says_whether_all_are_well() -> None:
    assert await rounds_of([Fake("good")], Board()).once()
    assert not await rounds_of([Fake("good"), Fake("bad", ProbeFailed("refused"))], Board()).once()
