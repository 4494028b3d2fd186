"""The life of one row: wait for its needs, start, become ready, crash and come back, be replaced, drain."""

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dev.board import Board, Kind, State
from dev.errors import CannotRun
from dev.infra.probes import NotReady
from dev.infra.servers import StopSteps
from dev.infra.standalone import stop_child
from dev.process import Child
from dev.tail import last_lines

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
QUICK_CRASHES_MAX = 5
# A process that lived this long was fine: its crash starts a new count.
HEALTHY_AFTER_S = 10.0
# A process that says nothing at all for this long while starting is hung.
SILENT_MAX_S = 60.0
PROBE_EVERY_S = 1.0
# One slow answer on a busy machine is no reason to take a replica out; an explicit 503 is.
MISSED_PROBES_MAX = 3
# Longer than readers of endpoints.json take to see a change (0.1 s) or name servers' answers to age (1 s).
UNLIST_WAIT_S = 1.2
FAILURE_LINES = 15
# EX_CONFIG of sysexits.h: the process says that its settings are wrong, so trying again is of no use.
EXIT_CONFIG = 78


class Recipe(Protocol):
    """How to start and probe one process; a new one is made for each start."""

    note: str
    port: int
    stop_steps: StopSteps

    async def spawn(self) -> Child:
        """Start the process on a free port."""

    async def probe(self) -> None:
        """Return when ready; raise OSError (TimeoutError) for no answer, NotReady for an answer that says no."""


class StartFailed(Exception):
    """A process ended, or stayed silent, before it was ready; `is_final` when another try would end alike."""

    def __init__(self, sentence: str, *, is_final: bool = False) -> None:
        super().__init__(sentence)
        self.is_final = is_final


@dataclass(slots=True, eq=False)
class Instance:
    """One process of a unit."""

    recipe: Recipe
    child: Child
    started: float
    ready_s: float | None = None
    is_ready: bool = False
    missed: int = 0


@dataclass(frozen=True, slots=True)
class Post:
    """A unit's place: its name and kind, what must be ready before it, how to make its process, where it logs."""

    name: str
    kind: Kind
    service: str
    log: Path
    needs: Callable[[], list[str]]
    make: Callable[[], Recipe]
    release: Callable[[int], None]
    is_polled: bool = True


class Unit:
    """One named place in the fleet, filled by one process at a time (two while it is being replaced)."""

    def __init__(self, post: Post, board: Board) -> None:
        self.post = post
        self.state: State = "waiting"
        self.note = ""
        self.restarts = 0
        self.current: Instance | None = None
        self.failure: list[str] = []
        self._board = board
        self._alive: set[Instance] = set()
        self._turn = asyncio.Lock()
        self._retry = asyncio.Event()
        self._is_stopping = False
        self._quick_crashes = 0
        self._spawner: asyncio.Task[Any] | None = None

    @property
    def is_listed(self) -> bool:
        """Whether callers may be sent here."""
        return self.state == "ready" and self.current is not None and self.current.is_ready

    @property
    def children(self) -> list[Child]:
        """Every live process of this place."""
        return [instance.child for instance in self._alive]

    async def run(self) -> None:
        """Keep the place filled until `stop()`."""
        while not self._is_stopping:
            await self._wait_for_needs()
            async with self._turn:
                if self.current is None and not self._is_stopping:
                    await self._fill()
            if self.current is not None:
                await self._watch()
            else:
                await self._pause()

    async def replace(self) -> None:
        """Put a new process in the old one's place without a gap: the old leaves when the new is ready.

        Raises StartFailed when the new one does not become ready; the old one then stays.
        """
        async with self._turn:
            old = self.current
            if old is not None:
                new = await self._start()
                new.is_ready = True
                self.current = new
                self.restarts += 1
                self._set("ready", new.recipe.note)
        if old is None:
            await self._try_again()
        else:
            await self._retire(old, wait_s=UNLIST_WAIT_S)

    async def bounce(self) -> None:
        """Stop the process, then start it again: for servers, of which two must never share a data folder."""
        async with self._turn:
            old, self.current = self.current, None
            if old is not None:
                self._set("starting", "restarting")
                await self._retire(old, wait_s=0.0)
                self.restarts += 1
        await self._try_again()

    async def drain(self, *, wait_s: float = UNLIST_WAIT_S) -> None:
        """Take the place off the list, wait until callers know, then stop its processes and leave it empty."""
        self._is_stopping = True
        self._retry.set()
        # A start that has no process yet (initdb, loading the fork server) is not waited for.
        if self._spawner is not None:
            self._spawner.cancel()
        was_listed = self.is_listed
        if self._alive:
            self._set("draining", self.note)
        async with asyncio.TaskGroup() as group:
            for instance in list(self._alive):
                group.create_task(self._retire(instance, wait_s=wait_s if was_listed else 0.0))
        self.current = None
        self._set("stopped", "")

    async def _wait_for_needs(self) -> None:
        def clear() -> bool:
            if self._is_stopping:
                return True
            missing = self.post.needs()
            note = f"waits for: {', '.join(missing)}" if missing else ""
            if missing and (self.state, self.note) != ("waiting", note):
                self.state, self.note = "waiting", note
            return not missing

        await self._board.until(clear)

    async def _fill(self) -> None:
        self._set("starting", "")
        self.failure = []
        try:
            instance = await self._start()
        except (StartFailed, CannotRun, OSError) as error:
            if not self._is_stopping:
                is_final = isinstance(error, CannotRun) or (isinstance(error, StartFailed) and error.is_final)
                self._count_crash(str(error), is_final=is_final)
            return
        if not self._is_stopping:
            instance.is_ready = True
            self.current = instance
            self._set("ready", instance.recipe.note)

    async def _start(self) -> Instance:
        """Start a process and return it ready; it is gone again when this raises."""
        recipe = self.post.make()
        started = time.monotonic()
        self._spawner = asyncio.current_task()
        try:
            instance = Instance(recipe, await recipe.spawn(), started)
        except BaseException:
            self.post.release(recipe.port)
            raise
        finally:
            self._spawner = None
        self._alive.add(instance)
        self._board.change()
        try:
            await self._until_ready(instance)
        except BaseException:
            _destroy(instance)
            await self._bury(instance)
            raise
        instance.ready_s = round(time.monotonic() - started, 3)
        return instance

    async def _until_ready(self, instance: Instance) -> None:
        pause_s, has_answered = 0.01, False
        while instance.child.exit_code is None and not self._is_stopping:
            try:
                await instance.recipe.probe()
            except NotReady as answer:
                has_answered = True
                if self.current is None and self.note != str(answer):
                    self._set("starting", str(answer))
            except OSError:
                if not has_answered and time.monotonic() - instance.started > SILENT_MAX_S:
                    raise StartFailed(f"gave no answer within {SILENT_MAX_S:.0f} s") from None
            else:
                return
            await _ended_within(instance.child, pause_s)
            pause_s = min(pause_s * 1.3, 0.1)
        code = instance.child.exit_code
        if code == EXIT_CONFIG:
            said = " ".join(last_lines(self.post.log, 1))
            raise StartFailed(f"refuses its settings: {said}", is_final=True)
        raise StartFailed(_explain(code))

    async def _watch(self) -> None:
        """Look after the current process; returns when it ended or the unit stops."""
        while not self._is_stopping and (instance := self.current) is not None:
            has_ended = await _ended_within(instance.child, PROBE_EVERY_S)
            if self._is_stopping or self.current is not instance:
                continue
            if has_ended:
                self.current = None
                self._set("starting", "")  # off the list before anything else
                instance.child.sweep()
                await self._bury(instance)
                if time.monotonic() - instance.started > HEALTHY_AFTER_S:
                    self._quick_crashes = 0
                self._count_crash(_explain(instance.child.exit_code))
                await self._pause()
            elif self.post.is_polled:
                await self._poll(instance)

    async def _poll(self, instance: Instance) -> None:
        try:
            await instance.recipe.probe()
        except NotReady as answer:
            instance.missed, reason = MISSED_PROBES_MAX, str(answer)
        except OSError:
            instance.missed, reason = instance.missed + 1, "does not answer"
        else:
            instance.missed, reason = 0, instance.recipe.note
        if self._is_stopping or self.current is not instance:
            return
        if instance.missed == 0 and not instance.is_ready:
            instance.is_ready = True
            self._set("ready", reason)
        elif instance.missed >= MISSED_PROBES_MAX and (instance.is_ready or self.note != reason):
            instance.is_ready = False
            self._set("starting", reason)

    def _count_crash(self, reason: str, *, is_final: bool = False) -> None:
        self._quick_crashes += 1
        self.restarts += 1
        self.failure = last_lines(self.post.log, FAILURE_LINES)
        if is_final or self._quick_crashes >= QUICK_CRASHES_MAX:
            fix = "" if is_final else f"; mend it and it is tried again, or `python3 dev restart {self.post.service}`"
            self._set("failed", f"{reason}{fix}")
        else:
            self._set("starting", f"{reason}, trying again")

    async def _pause(self) -> None:
        """Wait out the back-off, or, once failed, until somebody asks for another try."""
        self._retry.clear()
        if self._is_stopping:
            return
        if self.state == "failed":
            await self._retry.wait()
            self._quick_crashes = 0
            return
        delay_s = min(BACKOFF_FIRST_S * 2 ** max(self._quick_crashes - 1, 0), BACKOFF_MAX_S)
        try:
            async with asyncio.timeout(delay_s):
                await self._retry.wait()
        except TimeoutError:
            return

    async def _try_again(self) -> None:
        self._set("starting", "")
        self._retry.set()
        await self._board.until(lambda: self.state in ("ready", "failed", "stopped"))
        if self.state == "failed":
            raise StartFailed(self.note)

    async def _retire(self, instance: Instance, *, wait_s: float) -> None:
        instance.is_ready = False
        self._board.change()
        try:
            await _ended_within(instance.child, wait_s)
            await stop_child(instance.child, instance.recipe.stop_steps)
        except BaseException:
            _destroy(instance)
            raise
        await self._bury(instance)

    async def _bury(self, instance: Instance) -> None:
        await instance.child.wait()
        self._alive.discard(instance)
        self.post.release(instance.recipe.port)
        self._board.change()

    def _set(self, state: State, note: str) -> None:
        self.state, self.note = state, note
        self._board.change()


def _destroy(instance: Instance) -> None:
    # Both: a process that was only just forked has no group of its own yet.
    instance.child.send(signal.SIGKILL)
    instance.child.sweep()


async def _ended_within(child: Child, wait_s: float) -> bool:
    try:
        async with asyncio.timeout(wait_s):
            await child.wait()
    except TimeoutError:
        return False
    return True


def _explain(code: int | None) -> str:
    if code is None:
        return "stopped while starting"
    return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
