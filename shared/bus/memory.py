"""The bus inside one process: the full twin of NATS for tests and for a fleet of one replica; nothing outlives the process."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakValueDictionary

from shared.bus import subjects
from shared.bus.base import Append, Appended, BusUnavailable, Handler, LogConfig, Message, NoResponder
from shared.bus.mailbox import Mailbox
from shared.bus.memory_log import MemoryLog

ANSWERS_MAX = 10_000
"""So many requests may await their answer at once."""


class MemorySubscription:
    """One subscription; `dropped` counts messages lost because the handler was too slow."""

    def __init__(self, bus: "MemoryBus", *, pattern: str, queue: str, handler: Handler) -> None:
        self.pattern = pattern
        self.queue = queue
        self.mailbox = Mailbox(pattern, handler)
        self._bus = bus

    @property
    def dropped(self) -> int:
        return self.mailbox.dropped

    async def stop(self) -> None:
        self._bus.forget(self)
        await self.mailbox.stop()


class Broker:
    """What the buses of one process share: subscriptions, logs and requests under way. `available` False plays an outage."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.outages = 0
        self._available = True
        # Plain subjects are looked up, patterns are walked. Dicts as ordered sets.
        self._exact: dict[str, dict[MemorySubscription, None]] = {}
        self._patterns: dict[MemorySubscription, None] = {}
        self.logs: dict[str, MemoryLog] = {}
        self.answers: dict[str, asyncio.Future[Message]] = {}
        self.clock = clock
        self._inboxes = itertools.count(1)

    @property
    def available(self) -> bool:
        return self._available

    @available.setter
    def available(self, value: bool) -> None:
        self.outages += self._available and not value
        self._available = value

    def new_inbox(self) -> str:
        return f"_INBOX.memory.{next(self._inboxes)}"

    def add(self, subscription: MemorySubscription) -> None:
        if subjects.is_literal(subscription.pattern):
            self._exact.setdefault(subscription.pattern, {})[subscription] = None
        else:
            self._patterns[subscription] = None

    def remove(self, subscription: MemorySubscription) -> None:
        self._patterns.pop(subscription, None)
        same = self._exact.get(subscription.pattern)
        if same is not None:
            same.pop(subscription, None)
            if not same:
                del self._exact[subscription.pattern]

    def _takers(self, subject: str) -> list[MemorySubscription]:
        found = list(self._exact.get(subject, ()))
        found.extend(taker for taker in self._patterns if subjects.matches(taker.pattern, subject))
        return found

    def deliver(self, message: Message) -> bool:
        """Hand a message to every plain subscription and to one member of each queue group; tell whether there was any."""
        answer = self.answers.get(message.subject)
        if answer is not None:
            if not answer.done():
                answer.set_result(message)
            return True
        takers = self._takers(message.subject)
        groups: dict[str, list[MemorySubscription]] = {}
        for taker in takers:
            if taker.queue:
                groups.setdefault(taker.queue, []).append(taker)
            else:
                taker.mailbox.put(message)
        for members in groups.values():
            random.choice(members).mailbox.put(message)
        return bool(takers)

    def log_for(self, subject: str) -> MemoryLog | None:
        for log in self.logs.values():
            if subjects.takes(log.config, subject):
                return log
        return None

    def store(self, log: MemoryLog, message: Message, message_id: str) -> Appended:
        """Append to a log, then send to the subscribers of the subject and of its republished twin."""
        appended, stored = log.append(message.subject, message.data, message.headers, message_id)
        self.deliver(message)
        if stored is not None:
            target = subjects.republished(message.subject, log.config.republish)
            if target:
                self.deliver(
                    Message(
                        subject=target,
                        data=stored.data,
                        headers=stored.headers,
                        offset=stored.offset,
                        previous_offset=stored.previous_offset,
                    )
                )
        return appended


_named: WeakValueDictionary[str, Broker] = WeakValueDictionary()


def broker_named(name: str) -> Broker:
    """Return the process-wide broker of a name; it lives as long as a bus uses it."""
    found = _named.get(name)
    if found is None:
        found = _named[name] = Broker()
    return found


class MemoryBus:
    """A bus on a broker of this process; closing it leaves the other buses of the same broker alone."""

    def __init__(self, broker: Broker | None = None) -> None:
        self.broker = broker or Broker()
        self._own: set[MemorySubscription] = set()
        self._closed = False

    @property
    def connected(self) -> bool:
        return self.broker.available and not self._closed

    @property
    def session(self) -> int:
        return self.broker.outages + 1

    def _require(self) -> None:
        if not self.connected:
            raise BusUnavailable("the bus is not connected")

    async def publish(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        subjects.check_message(subject, data, headers, reply)
        self._require()
        self._send(Message(subject=subject, data=data, headers=dict(headers or {}), reply=reply))
        # Like a socket, yield: a publisher in a tight loop must not overrun handlers that are fast enough.
        await asyncio.sleep(0)

    def _send(self, message: Message) -> bool:
        log = self.broker.log_for(message.subject)
        if log is None or len(message.data) > log.config.message_bytes_max:
            return self.broker.deliver(message)
        self.broker.store(log, message, "")
        return True

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> MemorySubscription:
        subjects.check_pattern(subject)
        subjects.check_queue(queue)
        self._require()
        subscription = MemorySubscription(self, pattern=subject, queue=queue, handler=handler)
        self._own.add(subscription)
        self.broker.add(subscription)
        return subscription

    def forget(self, subscription: MemorySubscription) -> None:
        self._own.discard(subscription)
        self.broker.remove(subscription)

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Message:
        subjects.check_message(subject, data, headers)
        self._require()
        if len(self.broker.answers) >= ANSWERS_MAX:
            raise BusUnavailable("too many requests await their answer")
        inbox = self.broker.new_inbox()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.broker.answers[inbox] = answer
        try:
            if not self._send(Message(subject=subject, data=data, headers=dict(headers or {}), reply=inbox)):
                raise NoResponder("nobody listens on the subject of the request")
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise BusUnavailable("the request was not answered in time") from error
        finally:
            del self.broker.answers[inbox]

    async def ping(self, *, timeout_s: float) -> None:
        self._require()
        await asyncio.sleep(0)

    async def ensure_log(self, config: LogConfig, *, timeout_s: float = 5.0) -> str:
        subjects.check_log(config)
        self._require()
        for other in self.broker.logs.values():
            if other.config.name == config.name:
                continue
            if any(subjects.overlap(ours, theirs) for ours in config.subjects for theirs in other.config.subjects):
                raise ValueError(f"the subjects of the log {config.name} belong to another log already")
        log = self.broker.logs.get(config.name)
        if log is None:
            log = self.broker.logs[config.name] = MemoryLog(config, self.broker.clock)
        elif log.config != config:
            log.reconfigure(config)
        return log.epoch

    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 2.0,
    ) -> Appended:
        subjects.check_message(subject, data, headers)
        subjects.check_message_id(message_id)
        self._require()
        log = self.broker.log_for(subject)
        if log is None:
            raise BusUnavailable("no log takes this subject")
        appended = self.broker.store(log, Message(subject=subject, data=data, headers=dict(headers or {})), message_id)
        await asyncio.sleep(0)
        return appended

    async def append_all(self, messages: Sequence[Append], *, timeout_s: float = 5.0) -> list[Appended]:
        subjects.check_batch(messages)
        self._require()
        if subjects.log_of_all(messages, [log.config for log in self.broker.logs.values()]) is None:
            raise BusUnavailable("no log takes this subject")
        return [
            await self.append(message.subject, message.data, message_id=message.message_id, headers=message.headers)
            for message in messages
        ]

    async def read(
        self,
        log: str,
        subject: str,
        *,
        after: int,
        limit: int,
        age_max_s: float | None = None,
        timeout_s: float = 2.0,
    ) -> list[Message]:
        subjects.check_subject(subject)
        subjects.check_limit(limit)
        return self._log(log).read(subject, after=after, limit=limit, age_max_s=None if after else age_max_s)

    async def last_offset(self, log: str, subject: str, *, timeout_s: float = 2.0) -> int:
        subjects.check_subject(subject)
        return self._log(log).last_offset(subject)

    def _log(self, name: str) -> MemoryLog:
        subjects.check_log_name(name)
        self._require()
        log = self.broker.logs.get(name)
        if log is None:
            raise BusUnavailable(f"there is no log {name}")
        return log

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(subscription.stop() for subscription in list(self._own)))
