"""The verb `up`: makes one fleet's folders, locks and sockets, runs the supervisor, and cleans everything up."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev import external, logfiles, preflight, show, state, watch
from dev.control import Control
from dev.errors import CannotRun
from dev.fleet import Fleet
from dev.infra.credentials import make_private_dir, secret
from dev.infra.site import Site
from dev.launcher import ExecLauncher, ForkLauncher, Launcher
from dev.options import Options, common_settings
from dev.process import start_time
from dev.supervisor import Plan, Supervisor

# Told the outcome once: the status object when all are ready, else a sentence and the status object.
Outcome = Callable[[str | None, dict[str, Any]], None]
KILLED = 130
READY_TIMEOUT_S = 120.0
# Twice what a reader of endpoints.json takes to look again.
SETTLE_S = 0.2


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a fleet holds before its first process starts."""

    site: Site
    record: state.Record
    public: socket.socket
    plan: Plan


def run_fleet(checkout: Path, fleet: Fleet, options: Options, *, tell: Outcome | None = None) -> int:
    """Run a fleet in this process until it is told to stop; return the exit code. Raises CannotRun ahead of starting."""
    with prepare(checkout, fleet, options) as prepared:
        launcher: Launcher = ExecLauncher(checkout)
        # Elsewhere forking without exec is unsafe (macOS) or missing, and nothing ties the children's lives to ours.
        if options.forkserver and sys.platform.startswith("linux"):
            log = prepared.site.logs / "forkserver.log"
            launcher = ForkLauncher(checkout, prepared.site.clean_env(), log)
        supervisor = Supervisor(prepared.plan, prepared.site, launcher)
        runner = Runner(checkout, options, prepared, supervisor, launcher)
        return asyncio.run(runner.run(tell))


@contextlib.contextmanager
def prepare(checkout: Path, fleet: Fleet, options: Options) -> Iterator[Prepared]:
    """Check, lock and open what the fleet needs; everything is undone at the end."""
    home = state.Home.of(checkout)
    settings = common_settings(os.environ, fleet)
    given = external.given_urls(fleet.infra, os.environ)
    preflight.check_folder(home.root)
    with contextlib.ExitStack() as stack:
        run_lock = state.take_lock(home.run, "folder", fix="wait until that one has started or stopped")
        stack.callback(os.close, run_lock)
        if (old := state.read_record(home)) and not old.is_alive:
            state.reap(home, old)
        public = stack.enter_context(preflight.claim_port(options.port))
        data, secrets_dir, temporary = _folders(home, options)
        stack.callback(_remove, temporary)
        preflight.check_folder(data)
        preflight.check_disk(data)
        site = Site.make(data=data, run=home.run, logs=home.logs, secrets=secrets_dir, mark=secrets.token_hex(16))
        data_lock = state.take_lock(
            site.data,
            "data folder",
            fix="stop that one with `python3 dev down` in its checkout, or use another --data-dir",
        )
        stack.callback(os.close, data_lock)
        site.keep_fds = (data_lock,)
        record = state.Record(
            runner_pid=os.getpid(),
            runner_start=start_time(os.getpid()),
            mark=site.mark,
            arguments=options.arguments(),
            gateway=f"http://127.0.0.1:{public.getsockname()[1]}",
            secrets=str(site.secrets),
            temporary=[str(folder) for folder in temporary],
        )
        stack.callback(home.record.unlink, missing_ok=True)
        state.write_record(home, record)
        plan = Plan(fleet, options.replicas, given, settings, public)
        yield Prepared(site, record, public, plan)


def _folders(home: state.Home, options: Options) -> tuple[Path, Path, list[Path]]:
    """Return the data folder, the secrets folder, and those that are to go away in the end.

    Secrets live beside the data they open: another data folder has its own.
    """
    if options.ephemeral:
        folder = Path(tempfile.mkdtemp(prefix="roundhouse-"))
        return folder / "data", folder / "secrets", [folder]
    if options.data_dir is not None:
        return options.data_dir, options.data_dir / "secrets", []
    return home.root / "data", make_private_dir(home.root / "secrets"), []


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


class Runner:
    """Joins the supervisor with signals, the control channel, the display, the record, and the watcher."""

    def __init__(
        self, checkout: Path, options: Options, prepared: Prepared, supervisor: Supervisor, launcher: Launcher
    ) -> None:
        self._checkout = checkout
        self._options = options
        self._prepared = prepared
        self._supervisor = supervisor
        self._launcher = launcher
        self._home = state.Home.of(checkout)
        self._stop_watching = asyncio.Event()
        self._signals = 0

    async def run(self, tell: Outcome | None) -> int:
        """Run until stopped; 0 after an orderly stop."""
        supervisor = self._supervisor
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        for service in self._prepared.plan.fleet.services:
            for name in service.secret_files.values():
                secret(self._prepared.site.secrets, name, secret_bytes=32)
        control = Control(supervisor)
        await control.open()
        self._prepared.record.control_port, self._prepared.record.control_token = control.port, control.token
        self._write_record()
        supervisor.board.listen(self._write_record)
        display = show.make_display(as_json=self._options.json, title="roundhouse up") if tell is None else None
        if display is not None:
            supervisor.board.listen(lambda: display.update(supervisor.rows()))
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [
                    group.create_task(self._report(display, tell)),
                    group.create_task(self._trim_logs()),
                    group.create_task(self._watch()),
                ]
                await supervisor.run()
                self._stop_watching.set()
                for task in helpers:
                    task.cancel()
        finally:
            await control.close()
            if display is not None:
                display.close()
            for folder in self._prepared.site.outside if self._options.ephemeral else ():
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return KILLED if self._signals > 1 else 0

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._supervisor.stop()
        else:
            self._supervisor.kill()

    def _write_record(self) -> None:
        record = self._prepared.record
        pids = [child.pid for unit in self._supervisor.units for child in unit.children]
        if isinstance(self._launcher, ForkLauncher) and self._launcher.pid is not None:
            pids.append(self._launcher.pid)
        record.processes = {str(pid): record.processes.get(str(pid)) or start_time(pid) for pid in pids}
        if self._options.ephemeral:
            outside = [str(folder) for folder in self._prepared.site.outside]
            record.temporary = sorted({*record.temporary, *outside})
        state.write_record(self._home, record)

    async def _report(self, display: show.Display | None, tell: Outcome | None) -> None:
        """Say once how the start went."""
        supervisor = self._supervisor
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await supervisor.board.until(
                    lambda: supervisor.is_ready or bool(supervisor.failures) or supervisor.is_stopping
                )
        except TimeoutError:
            pass  # said below, with the row that is late
        # Ready means usable: what became ready last must have reached the readers of endpoints.json.
        await asyncio.sleep(SETTLE_S)
        if tell is not None:
            tell(None if supervisor.is_ready else _reason(supervisor), supervisor.status())
        await supervisor.board.until(lambda: supervisor.is_ready)
        if display is not None:
            display.say(show.welcome(str(supervisor.status()["gateway"]), self._checkout))

    async def _trim_logs(self) -> None:
        while True:
            await asyncio.sleep(logfiles.TRIM_EVERY_S)
            await asyncio.to_thread(logfiles.trim_all, self._prepared.site.logs)

    async def _watch(self) -> None:
        if not self._options.watch:
            return
        supervisor = self._supervisor
        await supervisor.board.until(lambda: supervisor.is_ready or bool(supervisor.failures))
        try:
            async for names in watch.changes(self._prepared.plan.fleet, self._checkout, self._stop_watching):
                async with asyncio.TaskGroup() as group:
                    for name in names:
                        group.create_task(supervisor.reload(name))
        except OSError as error:
            print(f"Source changes are not watched ({error.strerror or error}): raise fs.inotify.max_user_watches.")


def _reason(supervisor: Supervisor) -> str:
    if supervisor.is_stopping:
        return "The fleet was told to stop before it was ready."
    if failures := supervisor.failures:
        row = failures[0]
        lines = "".join(f"\n  | {line}" for line in row.failure)
        return f"{row.name} failed: {row.note}{lines}"
    if late := [row for row in supervisor.rows() if row.state != "ready"]:
        return f"{late[0].name} was not ready within {READY_TIMEOUT_S:.0f} s: {late[0].state}, {late[0].note or 'no answer'}"
    return "The fleet became ready too late."


def check_ahead(home: state.Home) -> None:
    """Make sure that the folder for the background process's own log exists."""
    preflight.check_folder(home.root)
    make_private_dir(home.run)


def refuse_other(record: state.Record, options: Options) -> None:
    """Raise CannotRun when the running fleet was started with other arguments."""
    wanted, running = options.arguments(), record.arguments
    if differing := [key for key in wanted if wanted[key] != running.get(key)]:
        shown = ", ".join(f"{key} {running.get(key)!r}, not {wanted[key]!r}" for key in differing)
        raise CannotRun(
            f"A fleet runs here already with other arguments ({shown}): stop it with `python3 dev down` first, "
            "or use `scale` and `restart`.",
            exit_code=2,
        )
