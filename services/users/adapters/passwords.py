"""Password hashing: argon2id in a small pool of threads with a short queue, so that a burst of log-ins leaves the loop alone.

The libraries release the GIL, so threads do as well as processes; more threads than cores only cost memory and tail latency. The
threads yield to the event loop (nice 10), which works for microseconds at a time beside their 20 ms. Hashes by bcrypt that came with
users from elsewhere are verified as well, and renewed with argon2id at the log-in.
"""

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import bcrypt
from argon2 import PasswordHasher as Argon2
from argon2.exceptions import InvalidHashError, VerificationError

from shared.errors import Unavailable

QUEUE_MAX = 64
HASHING_NICE = 10
BCRYPT = ("$2a$", "$2b$", "$2y$")
BCRYPT_BYTES_MAX = 72
"""The algorithm has never looked at more; whoever made the hash cut the password there."""
BCRYPT_COST_MAX = 14
"""A hash that costs more (a second at 14) could hold a thread for minutes."""

T = TypeVar("T")


class Argon2Passwords:
    """A PasswordHasher. 19 MiB, two passes and one lane are OWASP's minimum profile: about 20 ms a hash."""

    def __init__(
        self,
        *,
        memory_kib: int = 19_456,
        passes: int = 2,
        threads: int = 0,
        queue_max: int = QUEUE_MAX,
        on_use: Callable[[], None] = lambda: None,
    ) -> None:
        """`threads` 0 takes one a core. Makes the decoy, so it blocks for one hash: call it at start."""
        self._on_use = on_use
        self._argon2 = Argon2(time_cost=passes, memory_cost=memory_kib, parallelism=1)
        threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hashing", initializer=_be_nice)
        self._places = threading.BoundedSemaphore(threads + queue_max)
        self.decoy = self._argon2.hash(secrets.token_urlsafe(32))

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._argon2.hash(password))

    async def verify(self, password: str, password_hash: str) -> bool:
        return await self._run(lambda: self._fits(password, password_hash))

    def _fits(self, password: str, password_hash: str) -> bool:
        if password_hash.startswith(BCRYPT):
            return _fits_bcrypt(password, password_hash)
        try:
            return self._argon2.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    def is_outdated(self, password_hash: str) -> bool:
        return password_hash.startswith(BCRYPT) or self._argon2.check_needs_rehash(password_hash)

    async def _run(self, work: Callable[[], T]) -> T:
        if not self._places.acquire(blocking=False):
            raise Unavailable("too many log-ins at once", retry_after_s=1.0, code="hashing_busy")
        self._on_use()
        future: Future[T] = self._pool.submit(work)
        # A caller who goes away frees its place when its work has run or is taken back, not before: the CPU is still busy.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take back what has not begun; what runs ends within milliseconds."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _be_nice() -> None:
    """Let the event loop go first; Linux takes a thread's id where POSIX speaks of processes."""
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        with contextlib.suppress(OSError):  # forbidden to lower the priority: then it stays as it is
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), HASHING_NICE)


def _fits_bcrypt(password: str, password_hash: str) -> bool:
    try:
        if int(password_hash[4:6]) > BCRYPT_COST_MAX:
            return False
        # crypt's `$2y$` is what bcrypt calls `$2b$`.
        known = f"$2b${password_hash[4:]}".encode()
        return bcrypt.checkpw(password.encode()[:BCRYPT_BYTES_MAX], known)
    except ValueError:
        return False
