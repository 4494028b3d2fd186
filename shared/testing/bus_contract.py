"""The contract of a bus: facts that hold for every adapter, inherited by its test class."""

import asyncio

import pytest

from shared.bus.base import MESSAGE_BYTES_MAX, Bus, BusUnavailable, Message, NoResponder
from shared.bus.mailbox import MESSAGES_MAX
from shared.testing.bus_log_contract import BusLogContract
from shared.testing.bus_probe import Collector, eventually


class BusContract(BusLogContract):
    """A test class gives the fixtures `bus` and `other`: two connections to the same bus, closed afterwards."""

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
