"""The board keeps exactly the fleet's targets and remembers since when each is as it is."""

from services.health.domain.board import Board
from services.health.model import Result, Role, Target

FIRST = Target("users", Role.REPLICA, key="10.0.0.1:80", label="users-1")
SECOND = Target("users", Role.REPLICA, key="10.0.0.2:80", label="users-2")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_since_moves_only_when_the_state_changes() -> None:
    clock = Clock()
    board = Board(wall_clock=clock)
    board.keep([FIRST])
    seen = []
    for error in ("", "", "refused", "timeout", ""):
        clock.now += 1
        board.record(FIRST, Result(error, 0.001, clock.now))
        seen += [observation.since for observation in board]
    assert seen == [101, 101, 103, 103, 105]


def test_a_replica_that_is_gone_is_forgotten_and_not_recorded_again() -> None:
    board = Board()
    board.keep([FIRST, SECOND])
    board.record(FIRST, Result("", 0.001, 1.0))
    board.keep([SECOND])
    board.record(FIRST, Result("", 0.001, 2.0))
    assert [observation.target for observation in board] == [SECOND]


def test_a_replica_keeps_its_history_when_its_place_in_the_list_changes() -> None:
    board = Board()
    board.keep([FIRST, SECOND])
    board.record(SECOND, Result("refused", 0.001, 1.0))
    moved = Target("users", Role.REPLICA, key=SECOND.key, label="users-1")
    board.keep([moved])
    [observation] = board
    assert observation.target.label == "users-1"
    assert observation.result == Result("refused", 0.001, 1.0)
