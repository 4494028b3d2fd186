"""The contract of a bus's logs: facts that hold for every adapter; part of the bus contract."""

import asyncio
import itertools
import os

import pytest

from shared.bus.base import Append, Appended, Bus, BusUnavailable, LogConfig
from shared.testing.bus_probe import Collector, eventually, log_config

_serial = itertools.count(1)


class BusLogContract:
    """A test class gives the fixtures `bus` and `other`: two connections to the same bus, closed afterwards."""

    @pytest.fixture
    def word(self) -> str:
        """A first word for subjects and logs that no other test uses, on a server that outlives this run too."""
        return f"t{os.getpid()}x{next(_serial)}x{os.urandom(3).hex()}"

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

    async def test_a_read_can_begin_with_an_age(self, bus: Bus, other: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word))
        await bus.append(f"{word}.in.a", b"old")

        async def is_older() -> bool:
            return await other.read(word, f"{word}.in.a", after=0, limit=10, age_max_s=0.5) == []

        await eventually(is_older)
        for n in range(3):
            await bus.append(f"{word}.in.a", b"%d" % n)
            await bus.append(f"{word}.in.b", b"other")
        found = await other.read(word, f"{word}.in.a", after=0, limit=3, age_max_s=60.0)
        assert [(m.data, m.offset, m.previous_offset) for m in found] == [(b"old", 1, 0), (b"0", 2, 1), (b"1", 4, 2)]
        after = await other.read(word, f"{word}.in.a", after=4, limit=10, age_max_s=60.0)
        assert [m.data for m in after] == [b"2"]
        assert await other.read(word, f"{word}.in.none", after=0, limit=10, age_max_s=60.0) == []

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

    async def test_several_are_stored_together_in_their_order(self, bus: Bus, other: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word))
        out = Collector()
        await other.subscribe(f"{word}.out.>", out)
        await bus.append(f"{word}.in.a", b"first")
        batch = [Append(f"{word}.in.{'ab'[n % 2]}", b"%d" % n, f"id-{n}", {"x": str(n)}) for n in range(6)]
        assert await bus.append_all(batch) == [Appended(offset, duplicate=False) for offset in range(2, 8)]
        messages = await out.wait(7)
        assert [m.data for m in messages] == [b"first", *(b"%d" % n for n in range(6))]
        assert [m.offset for m in messages] == list(range(1, 8))
        found = await other.read(word, f"{word}.in.b", after=0, limit=10)
        assert [(m.data, dict(m.headers)) for m in found] == [(b"%d" % n, {"x": str(n)}) for n in (1, 3, 5)]
        assert (await other.append(f"{word}.in.a", b"4", message_id="id-4")).duplicate

    async def test_of_a_batch_that_comes_again_only_the_new_is_stored(self, bus: Bus, other: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word))
        batch = [Append(f"{word}.in.a", b"%d" % n, f"id-{n}") for n in range(6)]
        await bus.append_all(batch[:4])
        await other.ensure_log(log_config(word))
        again = await other.append_all(batch[2:])
        assert [(each.offset, each.duplicate) for each in again] == [(3, True), (4, True), (5, False), (6, False)]
        twice = await bus.append_all([Append(f"{word}.in.a", b"x", "x"), Append(f"{word}.in.a", b"x", "x")])
        assert [each.duplicate for each in twice] == [False, True]
        found = await bus.read(word, f"{word}.in.a", after=0, limit=10)
        assert [m.data for m in found] == [b"0", b"1", b"2", b"3", b"4", b"5", b"x"]

    async def test_the_largest_batch_is_stored_and_none_larger(self, bus: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word, messages_per_subject_max=2000))
        batch = [Append(f"{word}.in.a", b"%d" % n, f"id-{n}") for n in range(1001)]
        for wrong in (batch, []):
            with pytest.raises(ValueError, match="batch"):
                await bus.append_all(wrong)
        assert len(await bus.append_all(batch[:1000])) == 1000
        assert await bus.last_offset(word, f"{word}.in.a") == 1000

    async def test_a_batch_with_a_wrong_message_stores_nothing(self, bus: Bus, word: str) -> None:
        await bus.ensure_log(log_config(word, message_bytes_max=100))
        await bus.ensure_log(log_config(f"{word}b"))
        good = Append(f"{word}.in.a", b"good")
        wrongs = [
            Append(f"{word}b.in.a", b""),
            Append(f"{word}.in.a", bytes(101)),
            Append("a b", b""),
            Append(f"{word}.in.a", b"", "an id"),
            Append(f"{word}.in.a", b"", headers={"Nats-X": "1"}),
        ]
        for wrong in wrongs:
            with pytest.raises(ValueError, match=r"log|subject|id|header"):
                await bus.append_all([good, wrong])
        assert await bus.last_offset(word, f"{word}.in.a") == 0

    async def test_without_a_log_no_batch_is_stored(self, bus: Bus, word: str) -> None:
        with pytest.raises(BusUnavailable):
            await bus.append_all([Append(f"{word}.in.a", b"")])

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
