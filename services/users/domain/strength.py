"""What makes a password too easy to guess, told with every reason at once."""

from collections.abc import Callable, Sequence

from services.users.model.text import fold
from shared.errors import FieldError, InvalidInput

OWN_CHARS_MIN = 4
"""A shorter name is found in too many good passwords."""

Estimate = Callable[[str, Sequence[str]], Sequence[tuple[str, str]]]
"""From a password and words known of its owner: a code and a sentence for each reason why it is easy to guess, none where it is not."""


def nothing_known(_: str, __: Sequence[str]) -> Sequence[tuple[str, str]]:
    """An Estimate that finds every password hard to guess."""
    return ()


class PasswordStrength:
    """Refuses what its owner's name or an estimate of its guesses speaks against."""

    def __init__(self, estimate: Estimate = nothing_known) -> None:
        self._estimate = estimate

    def check(self, password: str, *, username: str, email: str) -> None:
        """Raises InvalidInput with one error on `body.password` for each reason."""
        reasons = [*_of_own_name(password, username, email), *self._estimate(password, _words(username, email))]
        if not reasons:
            return
        errors = [FieldError("body.password", message, code) for code, message in dict(reasons).items()]
        raise InvalidInput(f"body.password: {'; '.join(error.message for error in errors)}", errors=errors)


def _of_own_name(password: str, username: str, email: str) -> list[tuple[str, str]]:
    folded = fold(password)
    if folded in (fold(username), email):
        return [("guessable", "must not be the username or the e-mail address")]
    for name, what in (
        (fold(username), "username"),
        (email, "e-mail address"),
        (email.partition("@")[0], "e-mail address"),
    ):
        # What is left without the name must be a password by itself.
        if len(name) >= OWN_CHARS_MIN and name in folded and len(folded.replace(name, "")) < 8:
            return [("guessable", f"must not be made of the {what} and little else")]
    return []


def _words(username: str, email: str) -> list[str]:
    local, _, domain = email.partition("@")
    return [word for word in (username, local, domain.partition(".")[0]) if word]
