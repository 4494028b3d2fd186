"""What ends a benchmark with one sentence instead of a traceback."""


class BenchError(Exception):
    """The measurement cannot be made or cannot be trusted; the text says why and what to do."""


class Missing(BenchError):
    """A program or package that one row needs is not here; the row is left out and the text says how to get it."""
