"""The configuration file: TOML, checked whole before any of it is used."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from services.gateway.domain.faults import did_you_mean, place_of, sentences
from services.gateway.domain.routing import ROUTES_MAX, RouteTable, table_of
from services.gateway.domain.toml_places import Path, Place, find_places
from services.gateway.model import Addresses, Cors, GatewayConfig, Limit, Route

FAULTS_MAX = 50
"""More are counted, not listed."""

NAME_CHARS_MAX = 120

_LISTS: dict[str, type[BaseModel]] = {"routes": Route, "limits": Limit}
_TABLES: dict[str, type[BaseModel]] = {"addresses": Addresses, "cors": Cors}
SECTIONS = (*_LISTS, "services", *_TABLES)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to put right. `place` is None where the platform's own configuration is at fault, not a file."""

    text: str
    place: Place | None = None

    def within(self, file: str) -> str:
        """Return the fault as compilers say it, which editors and terminals link to the place; `file` may be unknown, ""."""
        if self.place is None:
            return f"{file}: {self.text}" if file else self.text
        line, column = self.place
        return f"{file}:{line}:{column}: {self.text}" if file else f"line {line}, column {column}: {self.text}"


class ConfigError(ValueError):
    """The file does not describe a gateway that can serve; every fault names the place and the fix."""

    def __init__(self, faults: Sequence[Fault], file: str = "") -> None:
        """`file` is its name, where the configuration came from one; the text is one line for each fault."""
        more = len(faults) - FAULTS_MAX
        self.lines = [fault.within(file) for fault in faults[:FAULTS_MAX]]
        if more > 0:
            self.lines.append(f"and {more} more")
        super().__init__("\n".join(self.lines))


def parse_config(text: str, base: GatewayConfig, file: str = "") -> GatewayConfig:
    """Read a file that replaces parts of `base`: `[[routes]]`, `[[limits]]`, `[services.NAME]`, `[addresses]`, `[cors]`.

    Routed services that the file does not name keep their treatment. Raises ConfigError with every fault that was found.
    """
    reader = _Reader(text, file)
    sections = reader.sections()
    routed = {route.service for route in sections.get("routes", base.routes)}
    kept = {name: policy for name, policy in base.services.items() if name in routed}
    config = base.model_copy(update={**sections, "services": {**kept, **sections.get("services", {})}})
    reader.check_whole(config)
    if reader.faults:
        raise ConfigError(sorted(reader.faults, key=lambda fault: fault.place or Place(0, 0)), file)
    return config


def check(config: GatewayConfig) -> RouteTable[Route]:
    """Return the table of a configuration whose parts fit together. Raises ConfigError."""
    faults = [Fault(text) for _, text in _misfits(config)]
    if faults:
        raise ConfigError(faults)
    return table_of(config.routes)


class _Reader:
    """Reads one text and collects what is wrong with it; the places are looked for once there is a fault."""

    def __init__(self, text: str, file: str) -> None:
        """Raises ConfigError when the text is not TOML."""
        self.faults: list[Fault] = []
        self._text = text
        self._places: Mapping[Path, Place] | None = None
        self._is_broken: set[str] = set()
        try:
            self._data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError([_decode_fault(error, text)], file) from None
        except RecursionError:
            raise ConfigError([Fault("this is nested deeper than any configuration")], file) from None

    def sections(self) -> dict[str, Any]:
        """Return the sections that the text has and that are sound."""
        for name in self._data.keys() - set(SECTIONS):
            self._add((name,), f"{name}: there is no such section{did_you_mean(name, SECTIONS)}")
        found: dict[str, Any] = {}
        for name, model in _LISTS.items():
            if name in self._data:
                found[name] = self._list(name, model, self._data[name])
        for name, model in _TABLES.items():
            if name in self._data:
                found[name] = self._one((name,), name, model, self._data[name])
        if "services" in self._data:
            whole = self._one((), "", GatewayConfig, {"routes": (), "services": self._data["services"]})
            found["services"] = whole.services if whole else {}
        return {name: value for name, value in found.items() if name not in self._is_broken}

    def check_whole(self, config: GatewayConfig) -> None:
        """Note what does not fit together. A section that could not be read would make others look wrong."""
        if self._is_broken:
            return
        for path, text in _misfits(config):
            if path[0] in self._data:
                self._add(path, text)
        if "limits" in self._data and "routes" not in self._data:
            for name in dict.fromkeys(name for _, _, name in _unknown_limits(config)):
                self._add(
                    ("limits",),
                    f"limits: the platform's own routes use {name}, and the limits of a file replace all others; "
                    f'write one with name = "{name}", or [[routes]] of your own',
                )

    def _list(self, section: str, model: type[BaseModel], rows: object) -> tuple[Any, ...]:
        if not isinstance(rows, list) or not rows:
            self._add((section,), f"{section} must be one or more [[{section}]] tables", breaks=section)
            return ()
        return tuple(
            self._one((section, index), _name_of(section.removesuffix("s"), index, row), model, row)
            for index, row in enumerate(rows)
        )

    def _one(self, path: Path, name: str, model: type[BaseModel], value: object) -> Any:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for inner, text in sentences(error, model):
                whole = (*path, *inner)
                self._add(whole, f"{name}: {text}" if name else text, breaks=str(whole[0]))
            return None

    def _add(self, path: Path, text: str, *, breaks: str = "") -> None:
        if self._places is None:
            self._places = find_places(self._text)
        self.faults.append(Fault(text, place_of(self._places, path)))
        if breaks:
            self._is_broken.add(breaks)


def _name_of(kind: str, index: int, row: object) -> str:
    """Return how a message calls a row: by its own name where it has a readable one, else by its number."""
    name = row.get("path" if kind == "route" else "name") if isinstance(row, dict) else None
    return f"{kind} {name[:NAME_CHARS_MAX]}" if isinstance(name, str) else f"{kind} number {index + 1}"


def _misfits(config: GatewayConfig) -> Iterator[tuple[Path, str]]:
    """Find what each part alone cannot show: a path in the file and a sentence with the fix."""
    names: set[str] = set()
    for index, limit in enumerate(config.limits):
        if limit.name in names:
            yield ("limits", index, "name"), f"limit {limit.name}: there are two of that name; give one another name"
        names.add(limit.name)
    for index, place, name in _unknown_limits(config):
        hint = did_you_mean(name, names) if names else "; there are none: write a [[limits]] table"
        path = config.routes[index].path
        yield ("routes", index, "limits", place), f"route {path}: limit {name} does not exist{hint}"
    yield from _unpayable(config)
    yield from _clashes(config.routes)
    served = {route.service for route in config.routes}
    for name in config.services:
        if name not in served:
            yield (
                ("services", name),
                f"services.{name}: no route goes to a service of that name{did_you_mean(name, served)}",
            )


def _unknown_limits(config: GatewayConfig) -> Iterator[tuple[int, int, str]]:
    """Find the limits that routes name and that do not exist: number of the route, place in its list, name."""
    names = {limit.name for limit in config.limits}
    for index, route in enumerate(config.routes):
        for place, name in enumerate(route.limits):
            if name not in names:
                yield index, place, name


def _unpayable(config: GatewayConfig) -> Iterator[tuple[Path, str]]:
    """Find the routes whose one request costs more than a whole quota: nothing would ever pass."""
    least = {limit.name: min(limit.quotas) for limit in config.limits}
    for index, route in enumerate(config.routes):
        for name in route.limits:
            if route.cost > least.get(name, route.cost):
                text = (
                    f"cost {route.cost} is above the quota {least[name]} of limit {name}; lower it or raise the quota"
                )
                yield ("routes", index, "cost"), f"route {route.path}: {text}"


def _clashes(routes: Sequence[Route]) -> Iterator[tuple[Path, str]]:
    if len(routes) > ROUTES_MAX:
        text = f"there are {len(routes)} routes; at most {ROUTES_MAX} are served: join some with /*"
        yield ("routes", ROUTES_MAX), text
    claimed: set[tuple[str, str]] = set()
    for index, route in enumerate(routes):
        for place, method in enumerate(route.methods):
            if (route.path, method) in claimed:
                text = f"route {route.path}: {method} is claimed twice; keep it in one of the two routes"
                yield ("routes", index, "methods", place), text
            claimed.add((route.path, method))


_DECODE_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _decode_fault(error: tomllib.TOMLDecodeError, text: str) -> Fault:
    """Return the parser's own complaint with its place, which it gives in words."""
    found = _DECODE_PLACE.search(str(error))
    if found is None:
        return Fault(f"this is not TOML: {error}")
    lines = text.splitlines() or [""]
    place = Place(int(found[1]), int(found[2])) if found[1] else Place(len(lines), len(lines[-1]) + 1)
    return Fault(f"this is not TOML: {str(error)[: found.start()]}", place)
