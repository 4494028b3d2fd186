"""What is wrong with a configuration, said so that it can be put right: the place, the key and what to write instead."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from services.gateway.domain.toml_places import Path, Place

VALUE_CHARS_MAX = 60

_ARTICLES = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}


def _nearest(name: str, known: list[str]) -> str:
    # 2 ms to import: paid by who has made a mistake, not by every start.
    import difflib

    return next(iter(difflib.get_close_matches(name, known, n=1)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for a name that is nearly a known one, else the known ones."""
    names = list(known)
    near = _nearest(name, names)
    if near:
        return f"; did you mean {near}?"
    return f"; known are {', '.join(names)}" if names else ""


def shown(value: object) -> str:
    """Return a value as TOML would write it, cut to a length that a log line bears."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    printable = "".join(char if char.isprintable() else "?" for char in text[: VALUE_CHARS_MAX + 1])
    return printable if len(printable) <= VALUE_CHARS_MAX else printable[:VALUE_CHARS_MAX] + "..."


def place_of(places: Mapping[Path, Place], path: Path) -> Place | None:
    """Return the place of a path, else of the nearest thing around it that is in the file."""
    while path:
        if path in places:
            return places[path]
        path = path[:-1]
    return None


def sentences(error: ValidationError, model: type[BaseModel]) -> list[tuple[Path, str]]:
    """Return each fault of a value of `model` as its path in that value and a sentence with the fix."""
    root = model.model_json_schema()
    found = []
    for item in error.errors(include_url=False):
        path: Path = tuple(item["loc"])
        found.append((path, f"{_field(path)}{_sentence(item, path, root)}"))
    return found


def _field(path: Path) -> str:
    # An element's number says less than its place in the file; pydantic calls a table's own name `[key]`.
    names = [step for step in path if isinstance(step, str) and step != "[key]"]
    return f"{'.'.join(names)}: " if names else ""


def _sentence(item: Mapping[str, Any], path: Path, root: Mapping[str, Any]) -> str:
    kind = item["type"]
    if kind == "extra_forbidden":
        known = _schema_of(path[:-1], root).get("properties", {})
        return f"there is no such key{did_you_mean(str(path[-1]), known)}"
    fix = _expected(_schema_of(path, root))
    if kind == "missing":
        return f"is missing; write {path[-1]} = {fix}" if fix else "is missing"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "literal_error":
        values = [str(value) for value in _schema_of(path, root).get("enum", ())]
        near = _nearest(str(item["input"]), values)
        return f"{shown(item['input'])} is not one of the choices; write {shown(near) if near else fix}"
    return f"{shown(item['input'])} does not fit; write {fix}" if fix else str(item["msg"])


def _schema_of(path: Sequence[str | int], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the JSON schema of what stands at a path, empty where the schema does not say."""
    schema: Mapping[str, Any] = root
    for step in path:
        schema = _plain(schema, root)
        if isinstance(step, int):
            schema = schema.get("items", {})
        else:
            schema = schema.get("properties", {}).get(step) or schema.get("additionalProperties") or {}
        if not isinstance(schema, Mapping):
            return {}
    return _plain(schema, root)


def _plain(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference, and of a value that may be absent take what it is when it is there."""
    for option in schema.get("anyOf", ()):
        if option.get("type") != "null":
            schema = option
            break
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Mapping[str, Any] = root["$defs"][str(reference).rpartition("/")[2]]
    return found


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _expected(schema: Mapping[str, Any]) -> str:
    """Say in words which values a schema takes."""
    if "enum" in schema:
        return f"one of {', '.join(shown(value) for value in schema['enum'])}"
    if "const" in schema:
        return shown(schema["const"])
    kind = schema.get("type", "")
    if kind == "array":
        count = f"at least {schema['minItems']}" if "minItems" in schema else ""
        count += f"{' and ' if count else ''}at most {schema['maxItems']}" if "maxItems" in schema else ""
        inner = _expected(schema.get("items", {}))
        return f"a list [...]{f' of {count}' if count else ''}{f', each {inner}' if inner else ''}"
    if kind == "object":
        return "a table"
    parts = [
        f"{word} {_number(schema[key])}"
        for key, word in (
            ("exclusiveMinimum", "over"),
            ("minimum", "at least"),
            ("exclusiveMaximum", "under"),
            ("maximum", "at most"),
        )
        if key in schema
    ]
    return " ".join(filter(None, (_ARTICLES.get(kind, ""), " and ".join(parts))))
