"""Where each key of a TOML text stands, for messages about values: `tomllib` reads values and forgets their places.

Only for a text that `tomllib` has read: the walk looks for structure and trusts the rest. No kept library gives places
(python-poetry/tomlkit#55 is open since 2019), and this is needed only once something is wrong.
"""

import re
import tomllib
from collections.abc import Mapping
from typing import NamedTuple

Path = tuple[str | int, ...]
"""From the top: keys of tables and indices of arrays, such as `("routes", 0, "path")`."""


class Place(NamedTuple):
    """Line and column of a key, a table's header or an array's element, both from 1."""

    line: int
    column: int


_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Up to two quotes may stand before the closing three, and belong to the text.
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:""|")?' + r"|'''.*?'''(?:''|')?" + r'|"(?:[^"\\\n]|\\.)*"' + r"|'[^'\n]*'", re.DOTALL
)
_PLAIN = re.compile(r"[^,\]}#\r\n]*")


def find_places(text: str) -> Mapping[Path, Place]:
    """Return the place of every table, key and element of a valid TOML text; the first place of what is opened twice."""
    walk = _Walk(text)
    walk.document()
    return walk.places


class _Walk:
    """One pass over a text; `_at` is the index of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._line_at = 0
        self._counted_to = 0
        self._last_index: dict[Path, int] = {}
        self.places: dict[Path, Place] = {}

    def document(self) -> None:
        table: Path = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _header(self) -> Path:
        place, is_element = self._place(), self._text.startswith("[[", self._at)
        self._at += 2 if is_element else 1
        keys = self._keys()
        self._at += 2 if is_element else 1
        path: Path = ()
        for key, _ in keys[:-1]:
            path = self._within((*path, key), place)
        path = (*path, keys[-1][0])
        if not is_element:
            return self._within(path, place)
        self._last_index[path] = self._last_index.get(path, -1) + 1
        self.places.setdefault(path, place)
        return self._within(path, place)

    def _within(self, path: Path, place: Place) -> Path:
        """Return where keys under a name of a header go: into the last element where the name is an array of tables."""
        self.places.setdefault(path, place)
        if path in self._last_index:
            path = (*path, self._last_index[path])
            self.places.setdefault(path, place)
        return path

    def _pair(self, table: Path) -> None:
        path = table
        for key, place in self._keys():
            path = (*path, key)
            self.places.setdefault(path, place)
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _keys(self) -> list[tuple[str, Place]]:
        """Read `a.b."c"` with the blanks around it."""
        keys = []
        while True:
            self._skip(_SPACE)
            place = self._place()
            found = _STRING.match(self._text, self._at) or _BARE_KEY.match(self._text, self._at)
            assert found is not None, f"no key at {place}"
            self._at = found.end()
            name = found.group()
            keys.append((str(tomllib.loads(f"k = {name}")["k"]) if name[0] in "\"'" else name, place))
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _value(self, path: Path) -> None:
        first = self._text[self._at]
        if first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._skip(_STRING if first in "\"'" else _PLAIN)

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while not self._ends("]"):
            self.places[(*path, index)] = self._place()
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while not self._ends("}"):
            self._pair(path)

    def _ends(self, bracket: str) -> bool:
        """Pass blanks and a comma, then the closing bracket if it is next."""
        self._skip(_BLANK)
        if self._text.startswith(",", self._at):
            self._at += 1
            self._skip(_BLANK)
        if not self._text.startswith(bracket, self._at):
            return False
        self._at += 1
        return True

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        assert found is not None, f"nothing that is expected at {self._place()}"
        self._at = found.end()

    def _place(self) -> Place:
        # Counted on from the last place: from the top each time, a long file would cost its square.
        self._line += self._text.count("\n", self._counted_to, self._at)
        self._line_at = max(self._line_at, self._text.rfind("\n", self._counted_to, self._at) + 1)
        self._counted_to = self._at
        return Place(self._line, self._at - self._line_at + 1)
