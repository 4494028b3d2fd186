"""The bus on NATS: core messages for events and requests, JetStream for logs."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as DriverSubscription

from shared.bus import nats_log, subjects
from shared.bus.base import Append, Appended, BusUnavailable, Handler, LogConfig, Message, NoResponder
from shared.bus.mailbox import Mailbox
from shared.bus.nats_address import parse_address
from shared.bus.nats_session import Session
from shared.tasks import Supervisor

CONNECT_WAIT_S = 10.0
SUBSCRIBE_WAIT_S = 2.0
BURST_MESSAGES_MAX = 65_536
BURST_BYTES_MAX = 32 * 1024 * 1024
"""What the driver may parse out of one read before our mailbox, which has the real bound, takes it over."""


class NatsSubscription:
    """One subscription, made anew on every connection; `dropped` counts messages lost because the handler was too slow."""

    def __init__(self, bus: "NatsBus", *, pattern: str, queue: str, handler: Handler) -> None:
        self._bus = bus
        self._pattern = pattern
        self._queue = queue
        self._mailbox = Mailbox(pattern, handler)
        self._driver: DriverSubscription | None = None

    @property
    def dropped(self) -> int:
        return self._mailbox.dropped

    async def attach(self, client: Client) -> None:
        """Subscribe on a new connection."""
        self._driver = await client.subscribe(
            self._pattern,
            queue=self._queue,
            cb=self._take,
            pending_msgs_limit=BURST_MESSAGES_MAX,
            pending_bytes_limit=BURST_BYTES_MAX,
        )

    async def _take(self, message: Msg) -> None:
        if self._mailbox.full:
            # The driver hands over a whole read without a pause: let a handler that is fast enough catch up first.
            await asyncio.sleep(0)
        self._mailbox.put(nats_log.message_of(message))

    async def stop(self) -> None:
        self._bus.forget(self)
        driver, self._driver = self._driver, None
        if driver is not None:
            # An error means that the connection is gone, and the subscription with it.
            with suppress(errors.Error, OSError):
                await driver.unsubscribe()
        await self._mailbox.stop()


class NatsBus:
    """A connected bus; `connect` makes one."""

    def __init__(self, url: str, *, name: str) -> None:
        self._session = Session(parse_address(url), name=name, attach=self._attach_all)
        self._supervisor = Supervisor()
        # A dict for its order: subscriptions come back in the order in which they were made.
        self._subscriptions: dict[NatsSubscription, None] = {}
        self._logs: dict[str, LogConfig] = {}
        self._takes_batches: set[str] = set()
        self._closed = False

    @classmethod
    async def connect(cls, url: str, *, name: str) -> "NatsBus":
        """Connect, trying for 10 s. Raises BusUnavailable past that, ValueError for a malformed URL."""
        bus = cls(url, name=name)
        bus._supervisor.start("bus connection", bus._session.keep)
        try:
            async with asyncio.timeout(CONNECT_WAIT_S):
                await bus._session.opened.wait()
        except TimeoutError as error:
            await bus.close()
            reason = bus._session.last_problem
            raise BusUnavailable(f"NATS could not be reached within {CONNECT_WAIT_S:g} s: {reason}") from error
        except BaseException:
            await bus.close()
            raise
        return bus

    @property
    def connected(self) -> bool:
        return self._session.connected and not self._closed

    @property
    def session(self) -> int:
        return self._session.serial

    async def _attach_all(self, client: Client) -> None:
        for subscription in list(self._subscriptions):
            await subscription.attach(client)

    async def publish(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        subjects.check_message(subject, data, headers, reply)
        self._require()
        await self._session.publish(subject, data, reply=reply, headers=dict(headers) if headers else None)

    def _require(self) -> None:
        if self._closed:
            raise BusUnavailable("the bus is closed")

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> NatsSubscription:
        subjects.check_pattern(subject)
        subjects.check_queue(queue)
        self._require()
        client = self._session.client
        subscription = NatsSubscription(self, pattern=subject, queue=queue, handler=handler)
        self._subscriptions[subscription] = None
        try:
            await subscription.attach(client)
            await self._session.round_trip(client, timeout_s=SUBSCRIBE_WAIT_S)
        except (errors.Error, OSError) as error:
            await subscription.stop()
            raise BusUnavailable("the connection to the bus was lost") from error
        except BaseException:
            await subscription.stop()
            raise
        return subscription

    def forget(self, subscription: NatsSubscription) -> None:
        """Make a subscription no more on new connections."""
        self._subscriptions.pop(subscription, None)

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Message:
        subjects.check_message(subject, data, headers)
        self._require()
        [answer] = await self._session.exchange(
            subject, data, timeout_s=timeout_s, headers=dict(headers) if headers else None
        )
        if nats_log.status_of(answer) == "503":
            raise NoResponder("nobody listens on the subject of the request")
        return nats_log.message_of(answer)

    async def ping(self, *, timeout_s: float) -> None:
        self._require()
        await self._session.round_trip(self._session.client, timeout_s=timeout_s)

    async def _call(self, operation: str, body: bytes, *, timeout_s: float) -> dict[str, Any]:
        self._require()
        [answer] = await self._session.exchange(f"$JS.API.{operation}", body, timeout_s=timeout_s)
        return nats_log.answer_of(answer)

    async def ensure_log(self, config: LogConfig, *, timeout_s: float = 5.0) -> str:
        subjects.check_log(config)
        wanted = nats_log.stream_config(config)
        try:
            async with asyncio.timeout(timeout_s):
                epoch = await self._create_or_update(config.name, wanted, timeout_s=timeout_s)
        except TimeoutError as error:
            raise BusUnavailable("the log was not ready in time") from error
        except nats_log.Refused as error:
            raise error.translated() from error
        self._logs[config.name] = config
        return epoch

    async def _create_or_update(self, name: str, wanted: Mapping[str, Any], *, timeout_s: float) -> str:
        try:
            # Creating what is there already, the same, succeeds: replicas may do it at once.
            answer = await self._call(f"STREAM.CREATE.{name}", orjson.dumps(wanted), timeout_s=timeout_s)
        except nats_log.Refused as error:
            if error.code != nats_log.NAME_IN_USE:
                raise
            existing = await self._call(f"STREAM.INFO.{name}", b"", timeout_s=timeout_s)
            changed = nats_log.changed_config(existing["config"], wanted)
            answer = await self._call(f"STREAM.UPDATE.{name}", orjson.dumps(changed), timeout_s=timeout_s)
        if nats_log.takes_batches(answer):
            self._takes_batches.add(name)
        else:
            self._takes_batches.discard(name)
        return nats_log.created_epoch(answer)

    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 2.0,
    ) -> Appended:
        message = Append(subject, data, message_id, headers or {})
        subjects.check_batch([message])
        subjects.log_of_all([message], list(self._logs.values()))
        self._require()
        sent = nats_log.sent_headers(message)
        [answer] = await self._session.exchange(subject, data, timeout_s=timeout_s, headers=sent)
        try:
            return nats_log.appended_of(nats_log.answer_of(answer))
        except nats_log.Refused as error:
            raise error.translated() from error
        except KeyError as error:
            raise BusUnavailable("another program answers in place of a log") from error

    async def append_all(self, messages: Sequence[Append], *, timeout_s: float = 5.0) -> list[Appended]:
        subjects.check_batch(messages)
        log = subjects.log_of_all(messages, list(self._logs.values()))
        self._require()
        try:
            async with asyncio.timeout(timeout_s):
                if log is not None and log.name in self._takes_batches and len(messages) > 1:
                    try:
                        return await self._append_batch(messages, timeout_s=timeout_s)
                    except nats_log.Refused as error:
                        if error.code != nats_log.DUPLICATE_IN_BATCH:
                            raise error.translated() from error
                # In order and one by one: a failure leaves no later message stored before an earlier one.
                return [
                    await self.append(each.subject, each.data, message_id=each.message_id, headers=each.headers)
                    for each in messages
                ]
        except TimeoutError as error:
            raise BusUnavailable("the log did not store the messages in time") from error

    async def _append_batch(self, messages: Sequence[Append], *, timeout_s: float) -> list[Appended]:
        """Store an atomic batch (ADR-50 of NATS): all but the last go without an acknowledgement, the last commits."""
        batch_id = os.urandom(12).hex()
        for place, message in enumerate(messages[:-1], start=1):
            headers = nats_log.sent_headers(message, batch_id=batch_id, place=place)
            await self._session.publish(message.subject, message.data, headers=headers)
        last = messages[-1]
        headers = nats_log.sent_headers(last, batch_id=batch_id, place=len(messages), commits=True)
        [answer] = await self._session.exchange(last.subject, last.data, timeout_s=timeout_s, headers=headers)
        return nats_log.committed_of(nats_log.answer_of(answer), len(messages))

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
        subjects.check_log_name(log)
        subjects.check_subject(subject)
        subjects.check_limit(limit)
        self._require()
        found: list[Message] = []
        more = True
        try:
            async with asyncio.timeout(timeout_s):
                while more and len(found) < limit:
                    body = nats_log.batch_request(
                        subject,
                        after=found[-1].offset if found else after,
                        limit=limit - len(found),
                        age_max_s=age_max_s,
                    )
                    answers = await self._session.exchange(
                        f"$JS.API.DIRECT.GET.{log}", body, timeout_s=timeout_s, is_last=nats_log.ends_batch
                    )
                    batch, more = nats_log.batch_of(answers, subject, previous=found[-1].offset if found else 0)
                    found.extend(batch)
        except TimeoutError as error:
            raise BusUnavailable("the log was not read in time") from error
        return found

    async def last_offset(self, log: str, subject: str, *, timeout_s: float = 2.0) -> int:
        subjects.check_log_name(log)
        subjects.check_subject(subject)
        self._require()
        body = orjson.dumps({"last_by_subj": subject})
        [answer] = await self._session.exchange(f"$JS.API.DIRECT.GET.{log}", body, timeout_s=timeout_s)
        status = nats_log.status_of(answer)
        if status == "404":
            return 0
        offset = nats_log.number((answer.headers or {}).get("Nats-Sequence", ""))
        if not offset:
            raise BusUnavailable("the log cannot be read")
        return offset

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(subscription.stop() for subscription in list(self._subscriptions)))
        if self._session.connected:
            # What is not sent by then is lost: at most once.
            with suppress(BusUnavailable):
                await self._session.round_trip(self._session.client, timeout_s=1.0)
        await self._supervisor.close()
