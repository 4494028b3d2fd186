"""The command line: `python3 dev VERB`, one function for each verb."""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dev.control import ask
from dev.errors import CannotRun
from dev.fleet import FLEET, Fleet
from dev.options import Options, parse_count, parse_replicas
from dev.process import start_time
from dev.state import Home, leftovers, live_record, read_record, reap

CHECKOUT = Path(__file__).resolve().parents[1]
DOWN_TIMEOUT_S = 60.0
CHANGE_TIMEOUT_S = 300.0
NEXT_STEPS = """Next
  make check                  it passes as it is
  python3 dev up              a fleet that runs already needs `python3 dev down` first
  curl -s -H "Authorization: Bearer $(python3 dev token)" -H 'Content-Type: application/json' \\
    -d '{{"text": "call Ada"}}' http://127.0.0.1:8080/{name}
  python3 dev remove {name}   takes it out again
docs/add-a-service.md says the rest."""


def main(argv: Sequence[str], *, fleet: Fleet = FLEET, checkout: Path = CHECKOUT) -> int:
    """Run one verb and return its exit code; an expected failure is one sentence on stderr."""
    arguments = _parser(fleet).parse_args(argv)
    verb: Callable[[argparse.Namespace, Fleet, Path], int] = arguments.run
    try:
        return verb(arguments, fleet, checkout)
    except CannotRun as error:
        print(f"dev {arguments.verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing more to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _up(arguments: argparse.Namespace, fleet: Fleet, checkout: Path) -> int:
    from dev import daemon, show, up

    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on there is something to clean up
    options = Options(
        port=arguments.port,
        data_dir=Path(arguments.data_dir).absolute() if arguments.data_dir else None,
        ephemeral=arguments.ephemeral,
        replicas=parse_replicas(arguments.replicas, fleet),
        detach=arguments.detach,
        json=arguments.json,
        watch=not arguments.no_watch,
        forkserver=not arguments.no_forkserver,
    )
    if options.ephemeral and options.data_dir:
        raise CannotRun("--ephemeral keeps nothing and --data-dir keeps it there: choose one.", exit_code=2)
    home = Home.of(checkout)
    record = read_record(home)
    if record is not None and record.is_alive:
        up.refuse_other(record, options)
        status = ask(record, "status")
        if options.json or options.detach:
            print(json.dumps(status))
        else:
            print(f"Already running (process {record.runner_pid}).\n{show.plain_table(status['resources'])}")
        return 0
    if not options.detach:
        return up.run_fleet(checkout, fleet, options)
    up.check_ahead(home)
    reason, found = daemon.detach(home.run / "dev.log", lambda tell: up.run_fleet(checkout, fleet, options, tell=tell))
    print(json.dumps(found, indent=2 if sys.stdout.isatty() else None))
    if reason is not None:
        print(f"dev up: {reason}", file=sys.stderr)
        print("The rest keeps running: `python3 dev logs`, then `python3 dev down`.", file=sys.stderr)
        return 1
    return 0


def _down(_arguments: argparse.Namespace, _fleet: Fleet, checkout: Path) -> int:
    home = Home.of(checkout)
    record = read_record(home)
    if record is None:
        print("Nothing runs here.")
        return 0
    if record.is_alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.runner_pid, signal.SIGTERM)
        if not _is_gone(record.runner_pid, record.runner_start, DOWN_TIMEOUT_S):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.runner_pid, signal.SIGKILL)
            _is_gone(record.runner_pid, record.runner_start, 5.0)
    count = reap(home, record)
    print("Stopped." if not count else f"Stopped; {count} processes that were left over were ended.")
    if remaining := leftovers(record):
        raise CannotRun(f"Processes {', '.join(map(str, remaining))} do not end: stop them by hand.")
    return 0


def _status(arguments: argparse.Namespace, _fleet: Fleet, checkout: Path) -> int:
    from dev.show import plain_table

    record = read_record(Home.of(checkout))
    if record is None or not record.is_alive:
        print(json.dumps({"gateway": None, "resources": []}) if arguments.json else "Nothing runs here.")
        return 3
    status = ask(record, "status")
    if arguments.json:
        print(json.dumps(status, indent=2 if sys.stdout.isatty() else None))
    else:
        print(f"Gateway {status['gateway']}\n{plain_table(status['resources'])}")
    # A fleet in motion is an answer, not a failure: scripts read the states.
    return 0


def _logs(arguments: argparse.Namespace, _fleet: Fleet, checkout: Path) -> int:
    from dev.logs import show_logs

    show_logs(Home.of(checkout).logs, arguments.name, follow=arguments.follow)
    return 0


def _restart(arguments: argparse.Namespace, _fleet: Fleet, checkout: Path) -> int:
    done = ask(live_record(Home.of(checkout)), "restart", timeout_s=CHANGE_TIMEOUT_S, name=arguments.name)
    print(f"Restarted {', '.join(done)}.")
    return 0


def _scale(arguments: argparse.Namespace, _fleet: Fleet, checkout: Path) -> int:
    from dev.show import plain_table

    record = live_record(Home.of(checkout))
    status = None
    for name, count in [parse_count(item) for item in arguments.counts]:
        status = ask(record, "scale", timeout_s=CHANGE_TIMEOUT_S, name=name, count=count)
    if status is not None:
        print(plain_table(status["resources"]))
    return 0


def _doctor(arguments: argparse.Namespace, fleet: Fleet, checkout: Path) -> int:
    from dev import doctor

    return doctor.report(doctor.examine(checkout, fleet, port=arguments.port))


def _token(arguments: argparse.Namespace, _fleet: Fleet, checkout: Path) -> int:
    from dev.signin import token

    record = live_record(Home.of(checkout))
    print(token(str(record.gateway), Path(record.secrets), admin=arguments.admin))
    return 0


def _new(arguments: argparse.Namespace, fleet: Fleet, checkout: Path) -> int:
    from dev.new.service import add

    written = add(arguments.name, fleet, checkout)
    print("\n".join(("Wrote", *(f"  {path}" for path in written))))
    print(NEXT_STEPS.format(name=arguments.name))
    return 0


def _remove(arguments: argparse.Namespace, fleet: Fleet, checkout: Path) -> int:
    from dev.new.service import remove

    taken = remove(arguments.name, fleet, checkout, force=arguments.force)
    print("\n".join((f"Took {arguments.name} out of", *(f"  {path}" for path in taken))))
    print("A fleet that runs has it until `python3 dev down` and `python3 dev up`.")
    return 0


def _setup(_arguments: argparse.Namespace, _fleet: Fleet, _checkout: Path) -> int:
    return 0  # the bootstrap did the work before this program began


def _is_gone(pid: int, started: str | None, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while start_time(pid) == started and started is not None:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def _parser(fleet: Fleet) -> argparse.ArgumentParser:
    names = ", ".join(service.name for service in fleet.services)
    parser = argparse.ArgumentParser(
        prog="python3 dev",
        description="Runs the whole fleet on this machine.",
        epilog="ROUNDHOUSE_STATE_DIR moves the state folder .roundhouse, for a second fleet beside the first.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace, Fleet, Path], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    _add_up(verb("up", _up, "Start the fleet; Ctrl-C stops it and leaves nothing behind."), names)
    verb("status", _status, "Show every process; exit code 0 a fleet runs, 3 none does.").add_argument(
        "--json", action="store_true", help="print one JSON object"
    )
    logs = verb("logs", _logs, "Show the merged logs of all processes.")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    logs.add_argument("name", nargs="?", metavar="NAME", help="only this service, replica or server")
    restart = verb("restart", _restart, "Restart a service one replica at a time, without a failed request.")
    restart.add_argument("name", metavar="NAME", help=f"a service ({names}), a replica such as users-1, or a server")
    scale = verb("scale", _scale, "Change the number of replicas while the fleet runs.")
    scale.add_argument("counts", nargs="+", metavar="NAME=COUNT", help="such as users=3")
    verb("down", _down, "Stop the fleet, or clean up after one whose runner was killed.")
    doctor = verb("doctor", _doctor, "Look for what would keep the fleet from running here; exit code 1 if anything.")
    doctor.add_argument("--port", type=_port, default=8080, help="the public port you will use (8080)")
    token = verb("token", _token, "Print an access token of a development user.")
    token.add_argument("--admin", action="store_true", help="of the first admin instead")
    new = verb("new", _new, "Write a new service into the fleet, compose, the chart and the tests.")
    new.add_argument("name", metavar="NAME", help="2 to 31 letters a-z and digits: folder, path and host name in one")
    remove = verb("remove", _remove, "Take a service that was added out of everything again.")
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--force", action="store_true", help="even when work of it is in no commit")
    setup = verb("setup", _setup, "Make .venv from the lock, and nothing else.")
    setup.add_argument("--dev", action="store_true", help="with the tools for working on the house")
    return parser


def _add_up(up: argparse.ArgumentParser, names: str) -> None:
    up.add_argument("--detach", action="store_true", help="return when all are ready and leave the fleet running")
    up.add_argument("--port", type=_port, default=8080, help="the gateway's port (8080); 0 takes a free one")
    up.add_argument("--data-dir", metavar="DIR", help="keep data and its secrets there (.roundhouse)")
    up.add_argument(
        "--ephemeral", action="store_true", help="keep data in a temporary folder that goes away at the end"
    )
    up.add_argument(
        "--replicas", action="append", default=[], metavar="NAME=COUNT", help=f"how many of {names}; may repeat"
    )
    up.add_argument("--json", action="store_true", help="print JSON: an object a line, with --detach the status object")
    up.add_argument("--no-watch", action="store_true", help="do not restart services when their source changes")
    up.add_argument("--no-forkserver", action="store_true", help="start each process with an interpreter of its own")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)
