"""Subjects: what publishers and subscribers may name, which pattern takes which subject, and where republishing sends it."""

import re
from collections.abc import Mapping, Sequence

from shared.bus.base import MESSAGE_BYTES_MAX, Append, LogConfig

SUBJECT_BYTES_MAX = 512
HEADERS_BYTES_MAX = 16 * 1024
READ_LIMIT_MAX = 1000
"""One read of a log returns at most so many messages."""

BATCH_MESSAGES_MAX = 1000
"""What the server takes in one atomic batch."""

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f*>]")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_LOG_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def check_subject(subject: str) -> None:
    """Refuse, with a ValueError, what may not be published on: empty words, wildcards, space, and the server's own `$...`."""
    if _FORBIDDEN.search(subject) or not _words_are_whole(subject) or subject.startswith("$"):
        raise ValueError("a subject is dotted words without spaces, wildcards or a leading $")


def check_pattern(pattern: str) -> None:
    """Refuse, with a ValueError, what may not be subscribed to; `*` stands for one word, a last `>` for one or more."""
    words = pattern.split(".")
    for place, word in enumerate(words):
        if word == "*" or (word == ">" and place == len(words) - 1):
            continue
        if not word or _FORBIDDEN.search(word):
            raise ValueError("a subject pattern is dotted words, with * for one word and > for the rest at the end")
    if len(pattern.encode()) > SUBJECT_BYTES_MAX or pattern.startswith("$"):
        raise ValueError(f"a subject pattern has at most {SUBJECT_BYTES_MAX} bytes and no leading $")


def check_queue(queue: str) -> None:
    """Refuse, with a ValueError, a queue group's name that could break the protocol."""
    if queue and (_FORBIDDEN.search(queue) or len(queue.encode()) > SUBJECT_BYTES_MAX):
        raise ValueError("a queue group's name has no spaces or wildcards")


def check_message(subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str = "") -> None:
    """Refuse, with a ValueError, a message that the bus does not carry; names beginning with `Nats-` belong to the server."""
    check_subject(subject)
    if reply:
        check_subject(reply)
    if len(data) > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message has at most {MESSAGE_BYTES_MAX} bytes, this one has {len(data)}")
    if not headers:
        return
    total_bytes = 0
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower().startswith("nats-") or name.lower() == "status":
            raise ValueError("a header's name is a token and does not begin with Nats-")
        if "\r" in value or "\n" in value:
            raise ValueError("a header's value is one line")
        total_bytes += len(name) + len(value.encode())
    if total_bytes > HEADERS_BYTES_MAX:
        raise ValueError(f"headers have at most {HEADERS_BYTES_MAX} bytes in all")


def check_log_size(config: LogConfig, data: bytes) -> None:
    """Refuse, with a ValueError, data that a log does not take."""
    if len(data) > config.message_bytes_max:
        raise ValueError(f"the log {config.name} takes messages of up to {config.message_bytes_max} bytes")


def takes(config: LogConfig, subject: str) -> bool:
    """Tell whether a log stores messages of a subject."""
    return any(matches(pattern, subject) for pattern in config.subjects)


def check_message_id(message_id: str) -> None:
    """Refuse, with a ValueError, a message id that is not one short line."""
    if len(message_id) > 256 or any(ord(character) < 0x21 for character in message_id):
        raise ValueError("a message id has at most 256 characters and no spaces")


def check_batch(messages: Sequence[Append]) -> None:
    """Refuse, with a ValueError, a batch that is empty or too large, or has a message that the bus does not carry."""
    if not 1 <= len(messages) <= BATCH_MESSAGES_MAX:
        raise ValueError(f"a batch has 1 to {BATCH_MESSAGES_MAX} messages")
    for message in messages:
        check_message(message.subject, message.data, message.headers)
        check_message_id(message.message_id)


def log_of_all(messages: Sequence[Append], configs: Sequence[LogConfig]) -> LogConfig | None:
    """Return the one log that takes all messages, None where none of these takes the first. Raises ValueError for different logs."""
    log = next((config for config in configs if takes(config, messages[0].subject)), None)
    if log is None:
        return None
    for subject in {message.subject for message in messages}:
        if not takes(log, subject):
            raise ValueError("the messages of a batch belong to one log")
    for message in messages:
        check_log_size(log, message.data)
    return log


def check_log(config: LogConfig) -> None:
    """Refuse, with a ValueError, a log that cannot be made as it is asked for."""
    if not _LOG_NAME.fullmatch(config.name):
        raise ValueError("a log's name has 1 to 64 of A-Z a-z 0-9 _ -")
    if not config.subjects:
        raise ValueError("a log takes at least one subject")
    for pattern in config.subjects:
        check_pattern(pattern)
    numbers = (config.messages_per_subject_max, config.age_max_s, config.bytes_max, config.duplicate_window_s)
    if min(numbers) <= 0 or not 0 < config.message_bytes_max <= MESSAGE_BYTES_MAX:
        raise ValueError("a log's limits are above zero, and its messages no larger than the bus carries")
    if config.duplicate_window_s > config.age_max_s:
        raise ValueError("a log's duplicate window is no longer than the age of its messages")
    if config.republish is not None:
        check_republish(*config.republish)


def check_log_name(log: str) -> None:
    """Refuse, with a ValueError, a text that can be no log's name."""
    if not _LOG_NAME.fullmatch(log):
        raise ValueError("a log's name has 1 to 64 of A-Z a-z 0-9 _ -")


def check_limit(limit: int) -> None:
    """Refuse, with a ValueError, a read of nothing or of too much."""
    if not 1 <= limit <= READ_LIMIT_MAX:
        raise ValueError(f"a read asks for 1 to {READ_LIMIT_MAX} messages")


def check_republish(source: str, destination: str) -> None:
    """Refuse, with a ValueError, a mapping other than prefix to prefix (`rt.in.>` to `rt.out.>`)."""
    check_pattern(source)
    check_pattern(destination)
    if not (source.endswith(">") and destination.endswith(">")) or "*" in source + destination:
        raise ValueError("republishing maps a prefix to a prefix: both patterns end with > and have no *")


def republished(subject: str, mapping: tuple[str, str] | None) -> str:
    """Return where a stored message of `subject` is republished, empty when it is not."""
    if mapping is None or not matches(mapping[0], subject):
        return ""
    return mapping[1][:-1] + subject[len(mapping[0]) - 1 :]


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a pattern takes a subject."""
    if pattern == subject:
        return True
    expected, given = pattern.split("."), subject.split(".")
    for place, word in enumerate(expected):
        if word == ">" and place == len(expected) - 1:
            return len(given) > place
        if place >= len(given) or word not in ("*", given[place]):
            return False
    return len(expected) == len(given)


def is_literal(pattern: str) -> bool:
    """Tell whether a pattern has no wildcard."""
    return "*" not in pattern and ">" not in pattern


def overlap(one: str, other: str) -> bool:
    """Tell whether some subject is taken by both patterns."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def _words_are_whole(subject: str) -> bool:
    return bool(subject) and all(subject.split(".")) and len(subject.encode()) <= SUBJECT_BYTES_MAX
