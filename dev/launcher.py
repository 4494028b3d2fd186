"""Starts service processes: by the fork server where there is one, else by `python -m`."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dev.process import Child, Command, open_log, spawn, start_time, sweep_group

READY_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Program:
    """A service process to start: module, environment, log, and a socket to hand down in the named variable."""

    module: str
    env: Mapping[str, str]
    log: Path
    shared_fd: int | None = None
    fd_variable: str | None = None


class Launcher(Protocol):
    """Makes service processes."""

    async def launch(self, program: Program) -> Child:
        """Start the program; it dies with the runner."""

    async def open(self) -> None:
        """Get ready to launch."""

    async def close(self) -> None:
        """Let go of whatever launching needed."""


class ExecLauncher:
    """A new interpreter for each process: slower, no shared memory, works everywhere."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def open(self) -> None:
        """Need nothing."""

    async def launch(self, program: Program) -> Child:
        env = dict(program.env)
        keep: tuple[int, ...] = ()
        if program.shared_fd is not None and program.fd_variable:
            env[program.fd_variable] = str(program.shared_fd)
            keep = (program.shared_fd,)
        argv = [sys.executable, "-m", program.module]
        return await spawn(Command(argv, env=env, log=program.log, cwd=self._root, keep_fds=keep))

    async def close(self) -> None:
        """Need nothing."""


@dataclass(slots=True)
class ForkedChild:
    """A child of the fork server; the server reports its end."""

    _pid: int
    started: str | None
    ended: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def exit_code(self) -> int | None:
        return self.ended.result() if self.ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def send(self, number: signal.Signals) -> None:
        # Not our own child: the pid may be somebody else's by now, so look again before signalling.
        if not self.ended.done() and start_time(self._pid) == self.started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def sweep(self) -> None:
        sweep_group(self._pid)


class ForkLauncher:
    """Client of `dev.forkserver`; starts a new one when the old has died (its children die with it)."""

    def __init__(self, root: Path, env: Mapping[str, str], log: Path) -> None:
        self._root = root
        self._env = env
        self._log = log
        self._turn = asyncio.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._children: dict[int, ForkedChild] = {}
        self._ended_early: dict[int, int] = {}
        self._answers: asyncio.Queue[dict[str, int]] = asyncio.Queue(maxsize=16)
        self._buffer = b""
        self._is_awaited = False
        # Answers still to come for requests that were given up: their processes are ended on arrival.
        self._unwanted = 0

    @property
    def pid(self) -> int | None:
        """The fork server's pid while it runs."""
        return self._server.pid if self._server else None

    async def open(self) -> None:
        """Start the fork server and wait until its imports are done."""
        async with self._turn:
            await self._ensure()

    async def launch(self, program: Program) -> Child:
        async with self._turn:
            await self._ensure()
            log = open_log(program.log)
            try:
                fds = [log] if program.shared_fd is None else [log, program.shared_fd]
                request: dict[str, object] = {"name": program.log.stem, "module": program.module}
                request |= {"env": dict(program.env), "fd_variable": program.fd_variable}
                assert self._channel is not None
                socket.send_fds(self._channel, [json.dumps(request).encode() + b"\n"], fds)
                pid = (await self._answer(ANSWER_TIMEOUT_S))["pid"]
            finally:
                os.close(log)
        child = ForkedChild(pid, start_time(pid))
        if pid in self._ended_early:
            child.ended.set_result(self._ended_early.pop(pid))
        else:
            self._children[pid] = child
        return child

    async def close(self) -> None:
        """End the fork server; its children have been stopped before, what is left of them dies with it."""
        self._drop()

    async def _ensure(self) -> None:
        if self._channel is not None and self._server is not None and self._server.poll() is None:
            return
        self._drop()
        ours, theirs = socket.socketpair()
        log = open_log(self._log)
        try:
            self._server = subprocess.Popen(  # noqa: ASYNC220 - a fork and exec, no waiting
                [sys.executable, "-m", "dev.forkserver", str(theirs.fileno())],
                env={**self._env, "ROUNDHOUSE_PARENT": str(os.getpid())},
                cwd=self._root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        finally:
            os.close(log)
            theirs.close()
        ours.setblocking(False)
        self._channel = ours
        asyncio.get_running_loop().add_reader(ours, self._read)
        await self._answer(READY_TIMEOUT_S)

    async def _answer(self, timeout_s: float) -> dict[str, int]:
        self._is_awaited = True
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._answers.get()
        except TimeoutError as error:
            self._drop()
            raise OSError("the fork server does not answer") from error
        except asyncio.CancelledError:
            if self._answers.empty():
                self._unwanted += 1
            else:
                self._discard(self._answers.get_nowait())
            raise
        finally:
            self._is_awaited = False
        if "gone" in answer:
            raise OSError(f"the fork server ended, see {self._log}")
        return answer

    def _read(self) -> None:
        assert self._channel is not None
        try:
            data = self._channel.recv(65536)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._drop()
            if self._is_awaited:
                self._answers.put_nowait({"gone": 1})
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, message: dict[str, int]) -> None:
        if "exited" not in message and self._unwanted:
            self._unwanted -= 1
            self._discard(message)
        elif "exited" not in message:
            self._answers.put_nowait(message)
        elif child := self._children.pop(message["exited"], None):
            child.ended.set_result(message["code"])
        else:
            self._ended_early[message["exited"]] = message["code"]

    def _discard(self, answer: dict[str, int]) -> None:
        """End a process that nobody waits for any more."""
        if pid := answer.get("pid"):
            os.kill(pid, signal.SIGKILL)  # the fork server has not said that it ended, so it is still that process
            self._children[pid] = ForkedChild(pid, None)

    def _drop(self) -> None:
        """Forget the fork server; its children count as killed, which they are by the kernel."""
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
        self._buffer = b""
        self._ended_early.clear()
        self._unwanted = 0
        for child in self._children.values():
            child.ended.set_result(-int(signal.SIGKILL))
        self._children.clear()
        while not self._answers.empty():
            self._answers.get_nowait()
