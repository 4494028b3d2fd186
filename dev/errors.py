"""The one expected failure of the runner: a sentence with the cause and the fix."""


class CannotRun(Exception):
    """Raised with one sentence that names the cause and what to do; printed without a traceback."""

    def __init__(self, sentence: str, *, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
