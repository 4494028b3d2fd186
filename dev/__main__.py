"""`python3 dev VERB`: works from any directory and on any Python new enough to say that it is too old."""

import os
import signal
import sys

# While modules load, Ctrl-C simply ends the program: the exception it would raise can get lost in an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
# Files of this folder must never stand in for modules of the standard library: only the root is on the path.
sys.path[:] = [ROOT] + [entry for entry in sys.path if os.path.abspath(entry or ".") not in (HERE, ROOT)]

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "Roundhouse needs Python 3.11 or newer and this is {}.{}: run it with a newer one, "
        "such as `python3.12 dev up`.".format(*sys.version_info[:2])
    )

from dev import bootstrap  # noqa: E402 - only now is the path right

if __name__ == "__main__":
    bootstrap.enter(sys.argv[1:])
    from dev.cli import main

    sys.exit(main(sys.argv[1:]))
