"""JetStream's own words: stream configurations, acknowledgements and batched direct reads, to and from ours."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from nats.aio.msg import Msg

from shared.bus.base import Append, Appended, BusUnavailable, LogConfig, Message
from shared.bus.epoch import epoch_of
from shared.bus.subjects import HEADERS_BYTES_MAX

NAME_IN_USE = 10058
MESSAGE_TOO_LARGE = 10054
DUPLICATE_IN_BATCH = 10201
_OURS_TO_MEND = frozenset({10052, 10065, 10025, NAME_IN_USE})
"""Codes of configurations that no waiting will make right: not changeable so, subjects taken, invalid, in use."""

BATCH_BYTES_MAX = 4 * 1024 * 1024
SERVER_HEADERS_BYTES = 1024
"""Room for the message id and the header lines' own bytes."""


class Refused(Exception):
    """The server said no; `code` is JetStream's `err_code`."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code

    def translated(self) -> Exception:
        """Return the error of the bus's contract."""
        if self.code in _OURS_TO_MEND:
            return ValueError(f"the log cannot be as it is asked for: {self}")
        if self.code == MESSAGE_TOO_LARGE:
            return ValueError(f"the log does not take the message: {self}")
        return BusUnavailable(f"the log did not do it: {self}")


def stream_config(config: LogConfig) -> dict[str, Any]:
    """Return a log as a JetStream stream: file storage, oldest out first, readable directly."""
    stream: dict[str, Any] = {
        "name": config.name,
        "subjects": list(config.subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": config.messages_per_subject_max,
        "max_age": _nanoseconds(config.age_max_s),
        "max_bytes": config.bytes_max,
        # The server counts headers too; the limit on data alone is kept by the bus that appends.
        "max_msg_size": config.message_bytes_max + HEADERS_BYTES_MAX + SERVER_HEADERS_BYTES,
        "duplicate_window": _nanoseconds(config.duplicate_window_s),
        "allow_direct": True,
        "allow_atomic": True,
    }
    if config.republish is not None:
        stream["republish"] = {"src": config.republish[0], "dest": config.republish[1]}
    return stream


def changed_config(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to update a stream to: ours, and what an operator set beyond it (replicas, placement)."""
    merged = {**existing, **wanted}
    if "republish" not in wanted:
        merged.pop("republish", None)
    return merged


def answer_of(message: Msg) -> dict[str, Any]:
    """Read an API answer or an acknowledgement. Raises BusUnavailable where nobody answered, Refused for the server's no."""
    if status_of(message) == "503":
        raise BusUnavailable("no log answers")
    try:
        answer = orjson.loads(message.data)
    except orjson.JSONDecodeError as error:
        raise BusUnavailable("the log gave no readable answer") from error
    if not isinstance(answer, dict):
        raise BusUnavailable("the log gave no readable answer")
    refusal = answer.get("error")
    if refusal:
        raise Refused(int(refusal.get("err_code", 0)), str(refusal.get("description", "no reason given")))
    return answer


def created_epoch(answer: Mapping[str, Any]) -> str:
    """Return the epoch from a stream's description. Raises BusUnavailable when it has none."""
    try:
        return epoch_of(str(answer["created"]))
    except (KeyError, ValueError) as error:
        raise BusUnavailable("the log gave no readable answer") from error


def appended_of(answer: Mapping[str, Any]) -> Appended:
    """Return the position out of an acknowledgement."""
    return Appended(offset=int(answer["seq"]), duplicate=bool(answer.get("duplicate", False)))


def sent_headers(message: Append, *, batch_id: str = "", place: int = 0, commits: bool = False) -> dict[str, str]:
    """Return the headers of a message to be stored, alone or at its place (from 1) in an atomic batch."""
    headers = dict(message.headers)
    if message.message_id:
        headers["Nats-Msg-Id"] = message.message_id
    if batch_id:
        headers["Nats-Batch-Id"] = batch_id
        headers["Nats-Batch-Sequence"] = str(place)
    if commits:
        headers["Nats-Batch-Commit"] = "1"
    return headers


def takes_batches(answer: Mapping[str, Any]) -> bool:
    """Tell from a stream's description whether it takes atomic batches; servers before 2.12 know none."""
    config = answer.get("config")
    return isinstance(config, dict) and config.get("allow_atomic") is True


def committed_of(answer: Mapping[str, Any], count: int) -> list[Appended]:
    """Return the positions out of the acknowledgement of an atomic batch. Raises BusUnavailable when it is none."""
    last = int(answer.get("seq", 0))
    if answer.get("count") != count or last < count:
        raise BusUnavailable("the log did not acknowledge the whole batch")
    return [Appended(offset=offset, duplicate=False) for offset in range(last - count + 1, last + 1)]


def status_of(message: Msg) -> str:
    """Return the status line's code, empty for a message."""
    return (message.headers or {}).get("Status", "") if not message.data else ""


def ends_batch(message: Msg) -> bool:
    """Tell whether a batched read is over: 204 (end of batch), 404 (nothing there), or an error."""
    return status_of(message) != ""


def batch_request(subject: str, *, after: int, limit: int, age_max_s: float | None = None) -> bytes:
    """Return the request for up to `limit` messages of a subject with offset > `after`, or where that is 0 of an age."""
    wanted: dict[str, Any] = {"batch": limit, "next_by_subj": subject, "max_bytes": BATCH_BYTES_MAX}
    if age_max_s is not None and not after:
        # The server takes a place or a time, not both.
        wanted["start_time"] = datetime.now(UTC) - timedelta(seconds=age_max_s)
    else:
        wanted["seq"] = after + 1
    return orjson.dumps(wanted)


def batch_of(messages: list[Msg], subject: str, *, previous: int) -> tuple[list[Message], bool]:
    """Return a batch's messages and whether more are stored. Raises BusUnavailable when the batch has a hole or was refused."""
    *stored, end = messages
    status = status_of(end)
    if status == "404":
        return [], False
    if status != "204":
        raise BusUnavailable("the log cannot be read")
    found: list[Message] = []
    for message in stored:
        headers = message.headers or {}
        offset = number(headers.get("Nats-Sequence", ""))
        # The server names in each message of a batch the one before it: what our own buffers lost must not go unseen.
        if found and number(headers.get("Nats-Last-Sequence", "")) != previous:
            raise BusUnavailable("a part of the log's answer was lost")
        found.append(
            Message(
                subject=headers.get("Nats-Subject", subject),
                data=message.data,
                headers=without_server_headers(headers),
                offset=offset,
                previous_offset=previous,
            )
        )
        previous = offset
    ending = end.headers or {}
    if found and number(ending.get("Nats-Last-Sequence", "")) != previous:
        raise BusUnavailable("a part of the log's answer was lost")
    return found, number(ending.get("Nats-Num-Pending", "")) > 0


def message_of(message: Msg) -> Message:
    """Return a message as ours: positions out of the server's headers, and those headers gone."""
    headers = message.headers
    if not headers:
        return Message(subject=message.subject, data=message.data, reply=message.reply)
    return Message(
        subject=message.subject,
        data=message.data,
        headers=without_server_headers(headers),
        offset=number(headers.get("Nats-Sequence", "")),
        previous_offset=number(headers.get("Nats-Last-Sequence", "")),
        reply=message.reply,
    )


def without_server_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that the publisher set."""
    return {name: value for name, value in headers.items() if not name.startswith("Nats-")}


def number(text: str) -> int:
    """Return a position from a header, 0 for anything else: another program may publish what it likes."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
