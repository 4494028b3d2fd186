"""Places in a TOML text: every key and element that the real parser reads has one, and it is where the key stands."""

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.toml_places import Path, find_places

WRITTEN = st.sampled_from(
    [
        "1",
        "-0.5",
        "true",
        "1979-05-27 07:32:00",
        '"a # b"',
        r'"a\"] b"',
        "'c\\'",
        '"""x\n[[no]]\nk = 1 \\""" z"""',
        '"""a"""""',
        '""""a\\\\"""',
        "'''l\n]}, '' '''",
        '""',
        '""""""',
        "''''''",
        "[]",
        "{}",
    ]
)
KEYS = st.sampled_from(["a", "b-c", "3", '"q k"', "'l.x'", r'"e\"s"', '"["', '"="', '""'])
BLANK = st.sampled_from(["", " ", "\n", "\r\n", " # c ] } [x] k = 1\n", "\n\t\n"])
VALUES = st.recursive(
    WRITTEN,
    lambda inner: st.one_of(
        st.lists(st.tuples(BLANK, inner, BLANK), min_size=1, max_size=3).map(
            lambda rows: "[" + ",".join("".join(row) for row in rows) + "]"
        ),
        st.dictionaries(KEYS, inner, min_size=1, max_size=3).map(
            lambda table: "{ " + ", ".join(f"{key} = {value}" for key, value in table.items()) + " }"
        ),
    ),
    max_leaves=6,
)
PAIRS = st.tuples(st.lists(KEYS, min_size=1, max_size=2), VALUES).map(lambda pair: f"{' . '.join(pair[0])} = {pair[1]}")
HEADERS = st.tuples(st.lists(KEYS, min_size=1, max_size=3), st.booleans()).map(
    lambda head: f"[[{'.'.join(head[0])}]]" if head[1] else f"[ {' . '.join(head[0])} ]"
)
TEXTS = st.lists(
    st.tuples(BLANK, st.one_of(PAIRS, HEADERS), st.sampled_from(["\n", "\r\n", " # c\n"])), max_size=8
).map(lambda lines: "".join("".join(line) for line in lines))


def paths_of(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every path in what the real parser read."""
    steps: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    for step, inner in steps:
        yield (*path, step)
        yield from paths_of(inner, (*path, step))


@given(TEXTS)
def test_every_path_has_a_place_where_its_key_or_header_stands(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    places = find_places(text)
    assert set(places) == set(paths_of(data))
    lines = text.split("\n")
    for path, place in places.items():
        rest = lines[place.line - 1][place.column - 1 :]
        step = path[-1]
        if isinstance(step, str) and not rest.startswith("["):
            read = rest.partition("=")[0] if rest[0] not in "\"'" else rest[: rest.index(rest[0], 1) + 1]
            if "\\" not in read:
                assert step in tomllib.loads(f"{read.split('.')[0] if rest[0] not in chr(34) + chr(39) else read} = 1")


def test_a_place_is_the_first_of_a_table_that_is_opened_twice() -> None:
    places = find_places("[a.b]\nx = 1\n[a]\ny = 2\n")
    assert places["a",] == (1, 1)
    assert places["a", "y"] == (4, 1)


def test_elements_of_arrays_of_tables_are_told_apart() -> None:
    places = find_places("[[r]]\nk = 1\n\n[[r]]\n  k = 2\n[r.s]\nt = [\n 1,\n   2]\n")
    assert places["r", 0, "k"] == (2, 1)
    assert places["r", 1] == (4, 1)
    assert places["r", 1, "k"] == (5, 3)
    assert places["r", 1, "s", "t", 1] == (9, 4)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "\ufeffa = 1"[1:]])
def test_a_text_of_nearly_nothing_is_walked(text: str) -> None:
    assert set(find_places(text)) == set(paths_of(tomllib.loads(text)))


def test_a_long_file_is_walked_in_linear_time() -> None:
    # Counting lines from the top for every key would take minutes for these.
    text = "[[routes]]\npath = '/a'\nmethods = ['GET', 'POST']\n" * 20_000
    assert find_places(text)["routes", 19_999, "methods", 1] == (60_000, 19)
