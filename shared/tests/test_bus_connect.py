"""The URL picks the adapter, and a bad one is told without its password."""

import pytest

from shared.bus.base import BusUnavailable
from shared.bus.connect import connect
from shared.bus.memory import MemoryBus


async def test_memory_is_new_each_time_unless_named() -> None:
    one, two = await connect("memory://", name="a"), await connect("memory://", name="a")
    shared, again = await connect("memory://s", name="a"), await connect("memory://s", name="b")
    brokers = [bus.broker for bus in (one, two, shared, again) if isinstance(bus, MemoryBus)]
    assert len(brokers) == 4
    assert len({id(broker) for broker in brokers}) == 3
    assert brokers[2] is brokers[3]


@pytest.mark.parametrize("url", ["kafka://u:hunter2@h:1", "hunter2", "", "nats:/u:hunter2@h"])
async def test_an_unknown_scheme_is_a_value_error_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="memory://, nats:// or tls://") as caught:
        await connect(url, name="a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["nats://", "nats://u:hunter2@h:port", "nats://u:hunter2@h:1,redis://u:hunter2@h"])
async def test_a_malformed_nats_url_is_a_value_error_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="NATS URL") as caught:
        await connect(url, name="a")
    assert "hunter2" not in str(caught.value)


async def test_no_server_is_told_in_one_sentence_without_host_or_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.bus.nats.CONNECT_WAIT_S", 0.3)
    with pytest.raises(BusUnavailable) as caught:
        await connect("nats://u:hunter2@127.0.0.1:9", name="a")
    text = str(caught.value)
    assert "hunter2" not in text
    assert "127.0.0.1" not in text
    assert "refused" in text
