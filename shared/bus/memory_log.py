"""A durable log's twin in memory: positions, limits by subject, age and bytes, and the window for duplicates."""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shared.bus.base import Appended, LogConfig, Message
from shared.bus.epoch import base36
from shared.bus.subjects import check_log_size

MESSAGE_IDS_MAX = 100_000
"""So many message ids are remembered at most; past it the oldest is forgotten before its window ends."""


@dataclass(frozen=True, slots=True)
class Stored:
    message: Message
    at: float

    @property
    def size_bytes(self) -> int:
        headers = self.message.headers
        return len(self.message.subject) + len(self.message.data) + sum(len(k) + len(v) for k, v in headers.items())


@dataclass(slots=True)
class MemoryLog:
    """`clock` gives seconds, rising; ages are measured with it. Offsets begin at 1 and are counted over all subjects of the log."""

    config: LogConfig
    clock: Callable[[], float]
    epoch: str = field(default_factory=lambda: base36(time.time_ns()))
    _last: int = 0
    _bytes: int = 0
    _stored: OrderedDict[int, Stored] = field(default_factory=OrderedDict)
    _by_subject: dict[str, deque[int]] = field(default_factory=dict)
    _ids: OrderedDict[str, tuple[int, float]] = field(default_factory=OrderedDict)

    def reconfigure(self, config: LogConfig) -> None:
        """Take a new configuration; what it no longer allows is dropped."""
        self.config = config
        for subject in list(self._by_subject):
            self._trim_subject(subject)
        self._trim()

    def append(
        self, subject: str, data: bytes, headers: Mapping[str, str], message_id: str
    ) -> tuple[Appended, Message | None]:
        """Store a message; return the answer and what was stored (None for a duplicate)."""
        check_log_size(self.config, data)
        now = self.clock()
        self._forget_ids(now)
        if message_id and message_id in self._ids:
            return Appended(offset=self._ids[message_id][0], duplicate=True), None
        self._trim()
        offsets = self._by_subject.setdefault(subject, deque())
        self._last += 1
        message = Message(
            subject=subject,
            data=data,
            headers=dict(headers),
            offset=self._last,
            previous_offset=offsets[-1] if offsets else 0,
        )
        stored = Stored(message, now)
        self._stored[self._last] = stored
        self._bytes += stored.size_bytes
        offsets.append(self._last)
        if message_id:
            self._ids[message_id] = (self._last, now)
        self._trim_subject(subject)
        self._trim()
        return Appended(offset=message.offset, duplicate=False), message

    def read(self, subject: str, *, after: int, limit: int, age_max_s: float | None = None) -> list[Message]:
        """Return stored messages of a subject, oldest first; `previous_offset` chains inside the answer and begins with 0."""
        self._trim()
        found: list[Message] = []
        previous = 0
        oldest_at = -math.inf if age_max_s is None else self.clock() - age_max_s
        for offset in self._by_subject.get(subject, ()):
            if offset <= after or self._stored[offset].at < oldest_at:
                continue
            stored = self._stored[offset].message
            found.append(
                Message(
                    subject=subject, data=stored.data, headers=stored.headers, offset=offset, previous_offset=previous
                )
            )
            previous = offset
            if len(found) == limit:
                break
        return found

    def last_offset(self, subject: str) -> int:
        """Return the newest offset of a subject, 0 when none is stored."""
        self._trim()
        offsets = self._by_subject.get(subject)
        return offsets[-1] if offsets else 0

    def _forget_ids(self, now: float) -> None:
        while self._ids:
            message_id, (_, at) = next(iter(self._ids.items()))
            if now - at < self.config.duplicate_window_s and len(self._ids) < MESSAGE_IDS_MAX:
                return
            del self._ids[message_id]

    def _trim_subject(self, subject: str) -> None:
        offsets = self._by_subject[subject]
        while len(offsets) > self.config.messages_per_subject_max:
            self._remove(offsets[0])

    def _trim(self) -> None:
        oldest_allowed = self.clock() - self.config.age_max_s
        while self._stored:
            offset, stored = next(iter(self._stored.items()))
            if stored.at > oldest_allowed and self._bytes <= self.config.bytes_max:
                return
            self._remove(offset)

    def _remove(self, offset: int) -> None:
        stored = self._stored.pop(offset)
        self._bytes -= stored.size_bytes
        subject = stored.message.subject
        offsets = self._by_subject[subject]
        offsets.popleft()
        if not offsets:
            del self._by_subject[subject]
