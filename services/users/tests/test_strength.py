"""How easily a password is guessed: every reason is told, and a good one passes."""

import pytest

from services.users.adapters.strength import GuessEstimate
from services.users.domain.strength import PasswordStrength
from shared.errors import InvalidInput


def codes(password: str, *, score_min: int = 2, username: str = "ada", email: str = "ada@example.com") -> set[str]:
    try:
        PasswordStrength(GuessEstimate(score_min)).check(password, username=username, email=email)
    except InvalidInput as error:
        refused = error
    else:
        return set()
    assert {error.field for error in refused.errors} == {"body.password"}
    assert all(password not in error.message for error in refused.errors)
    return {error.code for error in refused.errors}


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("password123", "common"),
        ("qwertyuiop", "common"),
        ("aaaaaaaaaaaa", "repeats"),
        ("mnopqrstuvwx", "sequence"),
        ("zaq1xsw2", "common"),
        ("P@ssw0rd", "substitutions"),
        ("Elizabeth", "name"),
    ],
)
def test_an_easy_password_is_refused_with_its_reason(password, reason):
    assert reason in codes(password)


@pytest.mark.parametrize(
    "password", ["correct horse 9", "long enough 1", "kJ8#pQ2!vX", "пароль лошадь скрепка", "x7" * 3 + "Tq!w9"]
)
def test_a_good_password_passes(password):
    assert not codes(password)


def test_the_owners_names_are_no_password():
    assert codes("Grace.Hopper", username="grace.hopper") == {"guessable"} | codes(
        "Grace.Hopper", username="grace.hopper"
    )
    assert "guessable" in codes("ada@example.com")
    assert "guessable" in codes("grace.hopper1", username="grace.hopper")
    assert "guessable" not in codes("grace.hopper and a turtle", username="grace.hopper")
    assert not codes("adamant turtle 4", username="ada")


def test_every_reason_is_told_at_once():
    assert len(codes("P@ssw0rd")) > 1


def test_no_score_asks_for_nothing_but_the_names():
    assert not codes("password123", score_min=0)
    assert codes("ada@example.com", score_min=0) == {"guessable"}


def test_a_higher_score_asks_for_more():
    assert not codes("correct horse 9", score_min=3)
    assert codes("Elizabeth77", score_min=4)


def test_the_longest_password_is_judged_by_its_beginning():
    assert codes("a" * 128)
    assert not codes("kJ8#pQ2!vX" + "a" * 118)
