"""The contract of a bus: facts that hold for every adapter, inherited by its test class."""

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable

import pytest

from shared.bus.base import MESSAGE_BYTES_MAX, Bus, BusUnavailable, LogConfig, Message, NoResponder
from shared.bus.mailbox import MESSAGES_MAX

_serial = itertools.count(1)


class Collector:
    """A handler that keeps what it gets; `wait` returns once there are so many."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._came = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._came.set()

    @property
    def texts(self) -> list[str]:
        return [message.data.decode() for message in self.messages]

    async def wait(self, count: int, *, timeout_s: float = 10.0) -> list[Message]:
        async with asyncio.timeout(timeout_s):
            while len(self.messages) < count:
                self._came.clear()
                await self._came.wait()
        return self.messages


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, timeout_s: float = 10.0) -> None:
    """Return once a condition holds that nothing announces; TimeoutError when it does not come to hold."""
    async with asyncio.timeout(timeout_s):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.01)


def log_config(
    word: str,
    *,
    messages_per_subject_max: int = 100,
    age_max_s: float = 60.0,
    duplicate_window_s: float = 60.0,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
) -> LogConfig:
    """Return a log of its own for a test: `<word>.in.>` republished to `<word>.out.>`."""
    return LogConfig(
        name=word,
        subjects=(f"{word}.in.>",),
        messages_per_subject_max=messages_per_subject_max,
        age_max_s=age_max_s,
        bytes_max=4 * 1024 * 1024,
        message_bytes_max=message_bytes_max,
        duplicate_window_s=duplicate_window_s,
        republish=(f"{word}.in.>", f"{word}.out.>"),
    )


class BusContract:
    """A test class gives the fixtures `bus` and `other`: two connections to the same bus, closed afterwards."""

    @pytest.fixture
    def word(self) -> str:
        """A first word for subjects and logs that no other test uses, on a server that outlives this run too."""
        return f"t{os.getpid()}x{next(_serial)}x{os.urandom(3).hex()}"

    # --- events -------------------------------------------------------------------------------------------------------

    async def test_every_subscriber_gets_each_message_in_order_with_its_headers(
        self, bus: Bus, other: Bus, word: str
    ) -> None:
        first, second = Collector(), Collector()
        await bus.subscribe(f"{word}.a", first)
        await other.subscribe(f"{word}.a", second)
        for n in range(20):
            await bus.publish(f"{word}.a", str(n).encode(), headers={"traceparent": f"00-{n}", "x-name": "Zoë"})
        for collector in (first, second):
            messages = await collector.wait(20)
            assert collector.texts == [str(n) for n in range(20)]
            assert messages[3].headers == {"traceparent": "00-3", "x-name": "Zoë"}
            assert messages[3].subject == f"{word}.a"
            assert (messages[3].offset, messages[3].previous_offset, messages[3].reply) == (0, 0, "")

    async def test_a_star_takes_one_word_and_a_last_arrow_the_rest(self, bus: Bus, word: str) -> None:
        star, rest, exact = Collector(), Collector(), Collector()
        await bus.subscribe(f"{word}.*.c", star)
        await bus.subscribe(f"{word}.>", rest)
        await bus.subscribe(f"{word}.b.c", exact)
        for subject in (f"{word}.b.c", f"{word}.b.d", f"{word}.b.b.c", f"{word}.x.c", word):
            await bus.publish(subject, subject.removeprefix(word).encode())
        await rest.wait(4)
        assert rest.texts == [".b.c", ".b.d", ".b.b.c", ".x.c"]
        await star.wait(2)
        assert star.texts == [".b.c", ".x.c"]
        await exact.wait(1)
        assert exact.texts == [".b.c"]

    async def test_one_member_of_a_queue_group_gets_a_message(self, bus: Bus, other: Bus, word: str) -> None:
        members, everyone = [Collector(), Collector(), Collector()], Collector()
        for member, at in zip(members, (bus, bus, other), strict=True):
            await at.subscribe(f"{word}.job", member, queue="workers")
        await other.subscribe(f"{word}.job", everyone)
        for n in range(60):
            await bus.publish(f"{word}.job", str(n).encode())
        await everyone.wait(60)
        await eventually(lambda: sum(len(member.messages) for member in members) >= 60)
        taken = sorted(int(text) for member in members for text in member.texts)
        assert taken == list(range(60))
        assert sum(1 for member in members if member.messages) >= 2

    async def test_a_publisher_in_a_tight_loop_does_not_overrun_a_fast_handler(
        self, bus: Bus, other: Bus, word: str
    ) -> None:
        collector = Collector()
        await other.subscribe(f"{word}.fast", collector)
        for n in range(5000):
            await bus.publish(f"{word}.fast", b"%d" % n)
        await collector.wait(5000)
        assert collector.texts == [str(n) for n in range(5000)]

    async def test_a_slow_handler_loses_the_oldest_and_the_loss_is_counted(
        self, bus: Bus, other: Bus, word: str
    ) -> None:
        started, go = asyncio.Event(), asyncio.Event()
        seen: list[int] = []

        async def slow(message: Message) -> None:
            started.set()
            await go.wait()
            seen.append(int(message.data))

        last = Collector()
        subscription = await bus.subscribe(f"{word}.slow", slow)
        await bus.subscribe(f"{word}.after", last)
        await other.publish(f"{word}.slow", b"0")
        await started.wait()
        for n in range(1, MESSAGES_MAX + 11):
            await other.publish(f"{word}.slow", b"%d" % n)
        await eventually(lambda: getattr(subscription, "dropped", 0) == 10)
        go.set()
        await eventually(lambda: len(seen) == MESSAGES_MAX + 1)
        assert seen == [0, *range(11, MESSAGES_MAX + 11)]

    async def test_a_failing_handler_gets_the_next_message(self, bus: Bus, word: str) -> None:
        collector = Collector()

        async def handle(message: Message) -> None:
            if message.data == b"bad":
                raise RuntimeError("planted")
            await collector(message)

        await bus.subscribe(f"{word}.f", handle)
        for data in (b"one", b"bad", b"two"):
            await bus.publish(f"{word}.f", data)
        await collector.wait(2)
        assert collector.texts == ["one", "two"]

    async def test_a_handler_in_which_something_was_cancelled_gets_the_next_message(self, bus: Bus, word: str) -> None:
        collector = Collector()

        async def handle(message: Message) -> None:
            if message.data == b"bad":
                raise asyncio.CancelledError
            await collector(message)

        await bus.subscribe(f"{word}.c", handle)
        for data in (b"bad", b"two"):
            await bus.publish(f"{word}.c", data)
        await collector.wait(1)
        assert collector.texts == ["two"]

    async def test_stop_finishes_what_was_handed_over_and_takes_no_more(self, bus: Bus, word: str) -> None:
        go, begun = asyncio.Event(), asyncio.Event()
        done: list[bytes] = []

        async def handle(message: Message) -> None:
            begun.set()
            await go.wait()
            done.append(message.data)

        subscription = await bus.subscribe(f"{word}.s", handle)
        await bus.publish(f"{word}.s", b"one")
        await begun.wait()
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(subscription.stop())
            group.create_task(subscription.stop())
            await asyncio.sleep(0)
            assert not stopping.done()
            go.set()
        assert done == [b"one"]
        await bus.publish(f"{word}.s", b"two")
        await bus.ping(timeout_s=2)
        await subscription.stop()
        assert done == [b"one"]

    async def test_a_handler_may_stop_its_own_subscription(self, bus: Bus, word: str) -> None:
        collector = Collector()

        async def handle(message: Message) -> None:
            await subscription.stop()
            await collector(message)

        subscription = await bus.subscribe(f"{word}.own", handle)
        await bus.publish(f"{word}.own", b"one")
        await collector.wait(1)

    async def test_publishing_to_nobody_is_fine(self, bus: Bus, word: str) -> None:
        await bus.publish(f"{word}.nobody", b"x")
        await bus.ping(timeout_s=2)

    @pytest.mark.parametrize(
        "subject",
        ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a*", "a\r\nPUB b", "a\x00", "$JS.API.INFO", "x" * 600],
    )
    async def test_a_bad_subject_is_a_value_error(self, bus: Bus, subject: str) -> None:
        with pytest.raises(ValueError, match="subject"):
            await bus.publish(subject, b"")
        with pytest.raises(ValueError, match="subject"):
            await bus.request(subject, b"", timeout_s=1)
        with pytest.raises(ValueError, match="subject"):
            await bus.append(subject, b"")

    @pytest.mark.parametrize("pattern", ["", "a..b", "a.>.b", "a b", "a*", "a>", "$SYS.>", "a.\r\n", "a.\t"])
    async def test_a_bad_pattern_is_a_value_error(self, bus: Bus, pattern: str) -> None:
        with pytest.raises(ValueError, match="pattern"):
            await bus.subscribe(pattern, Collector())

    async def test_a_message_over_the_limit_is_a_value_error(self, bus: Bus, word: str) -> None:
        collector = Collector()
        await bus.subscribe(f"{word}.big", collector)
        with pytest.raises(ValueError, match=str(MESSAGE_BYTES_MAX)):
            await bus.publish(f"{word}.big", bytes(MESSAGE_BYTES_MAX + 1))
        await bus.publish(f"{word}.big", bytes(MESSAGE_BYTES_MAX))
        assert len((await collector.wait(1))[0].data) == MESSAGE_BYTES_MAX

    @pytest.mark.parametrize(
        "headers", [{"a b": "x"}, {"": "x"}, {"a": "x\r\nb: y"}, {"Nats-Sequence": "7"}, {"a": "x" * 20_000}]
    )
    async def test_a_bad_header_is_a_value_error(self, bus: Bus, word: str, headers: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="header"):
            await bus.publish(f"{word}.h", b"", headers=headers)

    # --- requests -----------------------------------------------------------------------------------------------------

    async def test_a_request_gets_the_answer_of_a_responder(self, bus: Bus, other: Bus, word: str) -> None:
        async def answer(message: Message) -> None:
            await other.publish(message.reply, b"re " + message.data, headers={"x": message.headers["x"]})

        await other.subscribe(f"{word}.ask", answer, queue="q")
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(bus.request(f"{word}.ask", b"%d" % n, timeout_s=5, headers={"x": str(n)}))
                for n in range(50)
            ]
        for n, task in enumerate(asked):
            assert task.result().data == b"re %d" % n
            assert task.result().headers == {"x": str(n)}

    async def test_a_request_to_nobody_fails_at_once(self, bus: Bus, word: str) -> None:
        async with asyncio.timeout(5):
            with pytest.raises(NoResponder):
                await bus.request(f"{word}.nobody", b"", timeout_s=60)

    async def test_a_request_without_an_answer_ends_at_its_time(self, bus: Bus, word: str) -> None:
        await bus.subscribe(f"{word}.mute", Collector())
        with pytest.raises(BusUnavailable):
            await bus.request(f"{word}.mute", b"", timeout_s=0.05)

    async def test_a_late_answer_and_a_cancelled_request_do_no_harm(self, bus: Bus, other: Bus, word: str) -> None:
        go, asked = asyncio.Event(), asyncio.Event()

        async def late(message: Message) -> None:
            asked.set()
            await go.wait()
            await other.publish(message.reply, b"late")

        await other.subscribe(f"{word}.late", late)
        request = asyncio.get_running_loop().create_task(bus.request(f"{word}.late", b"", timeout_s=30))
        await asked.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        go.set()
        assert (await bus.request(f"{word}.late", b"", timeout_s=5)).data == b"late"

    async def test_ping_and_connected_tell_a_bus_that_is_there(self, bus: Bus) -> None:
        await bus.ping(timeout_s=2)
        assert bus.connected

    # --- logs ---------------------------------------------------------------------------------------------------------

    async def test_ensuring_a_log_twice_and_at_once_gives_one_epoch(self, bus: Bus, other: Bus, word: str) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(at.ensure_log(log_config(word))) for at in (bus, other, bus, other)]
        epochs = {task.result() for task in tasks}
        assert len(epochs) == 1
        assert epochs.pop().isalnum()

    async def test_ensuring_with_other_limits_keeps_the_log(self, bus: Bus, other: Bus, word: str) -> None:
        epoch = await bus.ensure_log(log_config(word))
        for n in range(5):
            await bus.append(f"{word}.in.a", b"%d" % n)
        async with asyncio.TaskGroup() as group:
            smaller = log_config(word, messages_per_subject_max=2)
            tasks = [group.create_task(at.ensure_log(smaller)) for at in (bus, other)]
        assert {task.result() for task in tasks} == {epoch}
        assert [m.data for m in await other.read(word, f"{word}.in.a", after=0, limit=10)] == [b"3", b"4"]

    async def test_a_log_cannot_take_the_subjects_of_another(self, bus: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word))
        twin = LogConfig(name=f"{word}b", subjects=(f"{word}.*.x",), messages_per_subject_max=1, age_max_s=600)
        with pytest.raises(ValueError, match="subjects"):
            await bus.ensure_log(twin)

    async def test_appended_messages_are_read_back_by_subject_and_position(
        self, bus: Bus, other: Bus, word: str
    ) -> None:
        await bus.ensure_log(log_config(word))
        for n in range(6):
            appended = await bus.append(f"{word}.in.{'ab'[n % 2]}", b"%d" % n, headers={"traceparent": "é"})
            assert (appended.offset, appended.duplicate) == (n + 1, False)
        found = await other.read(word, f"{word}.in.a", after=0, limit=10)
        assert [(m.offset, m.previous_offset, m.data) for m in found] == [(1, 0, b"0"), (3, 1, b"2"), (5, 3, b"4")]
        assert {(m.subject, m.headers["traceparent"], len(m.headers)) for m in found} == {(f"{word}.in.a", "é", 1)}
        after = await other.read(word, f"{word}.in.a", after=1, limit=1)
        assert [(m.offset, m.previous_offset) for m in after] == [(3, 0)]
        assert await other.read(word, f"{word}.in.a", after=5, limit=10) == []
        assert await other.read(word, f"{word}.in.a", after=999, limit=10) == []
        assert await other.read(word, f"{word}.in.none", after=0, limit=10) == []
        assert await other.last_offset(word, f"{word}.in.b") == 6
        assert await other.last_offset(word, f"{word}.in.none") == 0

    async def test_a_long_read_is_whole(self, bus: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word, messages_per_subject_max=1000))
        async with asyncio.TaskGroup() as group:
            for n in range(300):
                group.create_task(bus.append(f"{word}.in.a", b"%d" % n))
        found = await bus.read(word, f"{word}.in.a", after=0, limit=1000)
        assert [m.offset for m in found] == list(range(1, 301))
        assert sorted(int(m.data) for m in found) == list(range(300))

    async def test_the_same_message_id_is_stored_once(self, bus: Bus, other: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word))
        first = await bus.append(f"{word}.in.a", b"one", message_id="id-1")
        again = await other.append(f"{word}.in.a", b"one", message_id="id-1")
        assert (first.offset, first.duplicate) == (1, False)
        assert (again.offset, again.duplicate) == (1, True)
        assert (await other.append(f"{word}.in.a", b"two", message_id="id-2")).offset == 2
        found = await bus.read(word, f"{word}.in.a", after=0, limit=10)
        assert [(m.data, dict(m.headers)) for m in found] == [(b"one", {}), (b"two", {})]

    async def test_a_message_id_is_forgotten_after_its_window(self, bus: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word, duplicate_window_s=0.2))
        await bus.append(f"{word}.in.a", b"", message_id="id")

        async def stored_again() -> bool:
            return not (await bus.append(f"{word}.in.a", b"", message_id="id")).duplicate

        await eventually(stored_again)
        assert await bus.last_offset(word, f"{word}.in.a") == 2

    async def test_only_the_newest_of_a_subject_are_kept(self, bus: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word, messages_per_subject_max=3))
        await bus.append(f"{word}.in.b", b"other")
        for n in range(10):
            await bus.append(f"{word}.in.a", b"%d" % n)
        assert [m.data for m in await bus.read(word, f"{word}.in.a", after=0, limit=10)] == [b"7", b"8", b"9"]
        assert [m.data for m in await bus.read(word, f"{word}.in.b", after=0, limit=10)] == [b"other"]

    async def test_what_is_too_old_is_gone(self, bus: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word, age_max_s=1.0, duplicate_window_s=0.5))
        await bus.append(f"{word}.in.a", b"")
        assert await bus.last_offset(word, f"{word}.in.a") == 1

        async def gone() -> bool:
            return await bus.last_offset(word, f"{word}.in.a") == 0

        await eventually(gone)
        assert await bus.read(word, f"{word}.in.a", after=0, limit=10) == []

    async def test_stored_messages_are_republished_with_their_positions(self, bus: Bus, other: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word))
        out, source = Collector(), Collector()
        await other.subscribe(f"{word}.out.>", out)
        await other.subscribe(f"{word}.in.>", source)
        for subject in ("b", "c.d", "b", "c.d", "b"):
            await bus.append(f"{word}.in.{subject}", subject.encode(), headers={"x": "1"})
        await bus.append(f"{word}.in.b", b"dup", message_id="m")
        await bus.append(f"{word}.in.b", b"dup", message_id="m")
        messages = await out.wait(6)
        assert [(m.offset, m.previous_offset) for m in messages] == [(1, 0), (2, 0), (3, 1), (4, 2), (5, 3), (6, 5)]
        assert [m.subject for m in messages[:2]] == [f"{word}.out.b", f"{word}.out.c.d"]
        assert [dict(m.headers) for m in messages[4:]] == [{"x": "1"}, {}]
        await source.wait(7)
        assert {m.offset for m in source.messages} == {0}
        assert len(out.messages) == 6

    async def test_a_plain_publish_into_a_log_is_stored(self, bus: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word))
        await bus.publish(f"{word}.in.a", b"plain")

        async def stored() -> bool:
            return await bus.last_offset(word, f"{word}.in.a") == 1

        await eventually(stored)
        assert [m.data for m in await bus.read(word, f"{word}.in.a", after=0, limit=10)] == [b"plain"]

    async def test_without_a_log_there_is_no_appending_and_no_reading(self, bus: Bus, word: str) -> None:
        with pytest.raises(BusUnavailable):
            await bus.append(f"{word}.in.a", b"")
        with pytest.raises(BusUnavailable):
            await bus.read(word, f"{word}.in.a", after=0, limit=1)
        with pytest.raises(BusUnavailable):
            await bus.last_offset(word, f"{word}.in.a")

    async def test_a_log_refuses_messages_over_its_own_limit(self, bus: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word, message_bytes_max=100))
        with pytest.raises(ValueError, match="bytes"):
            await bus.append(f"{word}.in.a", bytes(101))
        assert (await bus.append(f"{word}.in.a", b"small")).offset == 1

    async def test_a_bad_log_or_read_is_a_value_error(self, bus: Bus, word: str) -> None:
        bad = LogConfig(name="a.b", subjects=(f"{word}.x",), messages_per_subject_max=1, age_max_s=600)
        with pytest.raises(ValueError, match="name"):
            await bus.ensure_log(bad)
        with pytest.raises(ValueError, match="name"):
            await bus.read("a b", f"{word}.x", after=0, limit=1)
        for limit in (0, 1001):
            with pytest.raises(ValueError, match="read"):
                await bus.read(word, f"{word}.x", after=0, limit=limit)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def test_close_finishes_handlers_and_leaves_others_alone(self, bus: Bus, other: Bus, word: str) -> None:
        go, begun, finished = asyncio.Event(), asyncio.Event(), Collector()

        async def handle(message: Message) -> None:
            begun.set()
            await go.wait()
            await finished(message)

        await bus.subscribe(f"{word}.end", handle)
        await other.publish(f"{word}.end", b"one")
        await begun.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(bus.close())
            await asyncio.sleep(0)
            go.set()
        assert finished.texts == ["one"]
        assert not bus.connected
        await bus.close()
        with pytest.raises(BusUnavailable):
            await bus.publish(f"{word}.end", b"")
        with pytest.raises(BusUnavailable):
            await bus.subscribe(f"{word}.end", finished)
        with pytest.raises(BusUnavailable):
            await bus.append(f"{word}.end", b"")
        await other.ping(timeout_s=2)

    async def test_what_was_published_before_close_arrives(self, bus: Bus, other: Bus, word: str) -> None:
        collector = Collector()
        await other.subscribe(f"{word}.last", collector)
        for n in range(200):
            await bus.publish(f"{word}.last", b"%d" % n)
        await bus.close()
        await collector.wait(200)
