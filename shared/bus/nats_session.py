"""One connection to NATS, kept for ever: opened, watched, given up when it is dead, and opened again."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable

import structlog
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from shared.bus.base import BusUnavailable
from shared.bus.inbox import Inbox
from shared.bus.nats_address import NatsAddress
from shared.bus.throttle import Throttle

ATTEMPT_WAIT_S = 5.0
RETRY_WAIT_S = 0.1
CHECK_INTERVAL_S = 2.0
CHECK_WAIT_S = 1.0
CLOSE_WAIT_S = 1.0
UNSENT_BYTES_MAX = 1024 * 1024
"""Above this a publisher waits for a round trip. Half the driver's own limit, at which it swallows cancellation."""
CREDENTIALS_REFUSED = "the server refused the credentials"

_log = structlog.get_logger()


class Session:
    """The driver's reconnecting is not used: it waits for a dead socket to close, which with unsent bytes takes the kernel a
    quarter of an hour, and it gives up for good on any error line of the server. Here a connection is one Client; when a round
    trip fails twice it is cut off and a new Client takes over, on which `attach` makes all subscriptions anew.

    A round trip is a message to our own inbox, not the driver's flush(): a PONG that comes after flush() timed out ends the
    driver's reading for ever (InvalidStateError in its read loop, nats-py 2.16).
    """

    def __init__(self, address: NatsAddress, *, name: str, attach: Callable[[Client], Awaitable[None]]) -> None:
        self.inbox = Inbox()
        self.opened = asyncio.Event()
        self.serial = 0
        """How many connections there have been."""
        self.last_problem = "no attempt has ended yet"
        self._address = address
        self._name = name
        self._attach = attach
        self._client: Client | None = None
        self._trouble = asyncio.Event()
        self._failures = Throttle()
        self._slow = Throttle()

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> Client:
        """The live connection. Raises BusUnavailable while there is none."""
        if self._client is None or not self._client.is_connected:
            raise BusUnavailable("the bus is not connected")
        return self._client

    async def publish(
        self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send, waiting first where too much is unsent. Raises BusUnavailable while disconnected, ValueError for too much data."""
        client = self.client
        if client.pending_data_size > UNSENT_BYTES_MAX:
            await self.round_trip(client, timeout_s=CHECK_INTERVAL_S)
        await self._send(client, subject, data, reply, headers)

    async def _send(
        self, client: Client, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        try:
            await client.publish(subject, data, reply=reply, headers=headers or None)
        except errors.MaxPayloadError as error:
            raise ValueError("the message is larger than the server takes") from error
        except (errors.Error, OSError) as error:
            raise BusUnavailable("the connection to the bus was lost") from error

    async def exchange(
        self,
        subject: str,
        data: bytes,
        *,
        timeout_s: float,
        headers: dict[str, str] | None = None,
        is_last: Callable[[Msg], bool] = lambda _: True,
    ) -> list[Msg]:
        """Send and await the answers up to the last. Raises BusUnavailable past the time or when the connection is lost."""
        with self.inbox.expect(is_last) as expected:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.publish(subject, data, reply=expected.reply, headers=headers)
            except TimeoutError as error:
                raise BusUnavailable("the bus did not take the message in time") from error
            return await expected.answers(timeout_s)

    async def round_trip(self, client: Client, *, timeout_s: float) -> None:
        """Return once the server has taken everything sent so far on this connection. Raises BusUnavailable."""
        with self.inbox.expect(lambda _: True) as expected:
            await self._send(client, expected.reply, b"")
            await expected.answers(timeout_s)

    async def keep(self) -> None:
        """Hold a connection until cancelled; run it under a supervisor."""
        try:
            while True:
                client = await self._open()
                if client is None:
                    await asyncio.sleep(random.uniform(RETRY_WAIT_S, 3 * RETRY_WAIT_S))
                    continue
                await self._watch(client)
                self._give_up(client)
                await self._dispose(client)
        finally:
            last = self._client
            self._client = None
            self.inbox.fail_all()
            if last is not None:
                await self._dispose(last)

    async def _open(self) -> Client | None:
        client = Client()
        try:
            async with asyncio.timeout(ATTEMPT_WAIT_S):
                await self._connect(client)
                await client.subscribe(self.inbox.pattern, cb=self.inbox.take)
                await self._attach(client)
                await self.round_trip(client, timeout_s=ATTEMPT_WAIT_S)
        except (errors.Error, OSError, TimeoutError, BusUnavailable) as error:
            if not isinstance(error, errors.NoServersError):
                self._note(error)
            if self._failures.due():
                _log.warning("bus_connect_failed", reason=self.last_problem, not_logged_before=self._failures.held_back)
            await self._dispose(client)
            return None
        except BaseException:
            await self._dispose(client)
            raise
        self._client = client
        self.serial += 1
        self.last_problem = "none since the connection was made"
        _log.info("bus_connected", again=self.opened.is_set())
        self.opened.set()
        return client

    async def _connect(self, client: Client) -> None:
        async def lost() -> None:
            self._trouble.set()

        await client.connect(
            servers=list(self._address.servers),
            name=self._name,
            error_cb=self._on_error,
            disconnected_cb=lost,
            closed_cb=lost,
            reconnected_cb=lost,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=RETRY_WAIT_S,  # type: ignore[arg-type]  # the driver sleeps for it: a float is right
            connect_timeout=2,
            ping_interval=5,
            max_outstanding_pings=2,
            **self._address.options,  # type: ignore[arg-type]
        )

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, errors.SlowConsumerError):
            if self._slow.due():
                _log.warning("bus_messages_dropped_by_driver", not_logged_before=self._slow.held_back)
            return
        self._note(error)
        self._trouble.set()

    def _note(self, error: Exception) -> None:
        if self.last_problem == CREDENTIALS_REFUSED and isinstance(error, ConnectionResetError | errors.UnexpectedEOF):
            # A server that refuses closes at once; now and then its reason does not get through, only the closing.
            return
        self.last_problem = describe(error)

    async def _watch(self, client: Client) -> None:
        """Return when the connection is dead: closed by the driver, or two round trips in a row without an answer."""
        failed = 0
        while client.is_connected and failed < 2:
            if not failed:
                self._trouble.clear()
                try:
                    async with asyncio.timeout(CHECK_INTERVAL_S):
                        await self._trouble.wait()
                except TimeoutError:
                    pass  # nothing has happened: time for a round trip
            try:
                await self.round_trip(client, timeout_s=CHECK_WAIT_S)
                failed = 0
            except BusUnavailable as error:
                # Twice, because after this process itself stood still the first may time out with the answer at the door.
                failed += 1
                if client.is_connected:
                    self.last_problem = str(error)

    def _give_up(self, client: Client) -> None:
        if self._client is client:
            self._client = None
        self.inbox.fail_all()
        _log.warning("bus_disconnected", reason=self.last_problem)

    async def _dispose(self, client: Client) -> None:
        # The socket first: closing politely would wait until unsent bytes are through, on a dead peer for minutes.
        writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        # When writing the unsent bytes fails, the driver leaves its own close() before it has ended these tasks.
        for subscription in list(client._subs.values()):
            subscription._stop_processing()
        client._subs.clear()
        try:
            async with asyncio.timeout(CLOSE_WAIT_S):
                await client.close()
        except (errors.Error, OSError, TimeoutError, AssertionError) as error:
            _log.debug("bus_close_failed", reason=describe(error))


def describe(error: BaseException) -> str:
    """Say what went wrong in a few words, without an address or credentials."""
    if isinstance(error, BusUnavailable):
        return str(error)
    if isinstance(error, TimeoutError | errors.TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, errors.UnexpectedEOF):
        return "the server closed the connection"
    if "authorization violation" in str(error).lower():
        return CREDENTIALS_REFUSED
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__
