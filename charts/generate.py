"""Writes what the chart has from elsewhere: the services and settings that its schema knows, and the README's table of values.

`python charts/generate.py` writes, with `--check` it only says whether all is current. The list of the fleet and the services' own
settings classes are the source, so a value that no service would understand is refused by Helm already.
"""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from pydantic import SecretStr  # noqa: E402 - after the path of the repository

from dev.fleet import FLEET, Service  # noqa: E402
from shared.settings import Settings, variable_of  # noqa: E402

CHART = ROOT / "charts" / "roundhouse"
SCHEMA = CHART / "values.schema.json"
README = CHART / "README.md"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"

DECIDED_BY_CHART = frozenset({"PORT", "REPLICA", "ENDPOINTS", "DRAIN_WAIT_S", "DRAIN_GRACE_S", "FD"})
"""Set in one place of the values each, or from the pod."""

REFUSES_PROBES = frozenset({"AUTHORITIES"})
"""The kubelet asks by the pod's address, which is in no list of host names."""

KEPT_OF_A_FIELD = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "pattern")
VALUE_CHARS_MAX = 60

_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):(?: (?P<value>.*))?$")
_DESCRIPTION = re.compile(r"^ *# -- (?P<text>.*)$")


def settings_of(service: Service) -> type[Settings]:
    """Return the class of a service's settings."""
    module = importlib.import_module(f"{service.module}.settings")
    return next(
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Settings) and found.service == service.name
    )


def settings_schema(settings: type[Settings], prefix: str) -> dict[str, Any]:
    """Return the schema of a `settings:` map: names without prefix, and what each may be."""
    fields = settings.model_json_schema(by_alias=False)["properties"]
    found = {}
    for name, field in settings.model_fields.items():
        variable = variable_of(settings, name, field)
        setting = variable.removeprefix(prefix)
        is_prefixed = not isinstance(field.validation_alias, str)
        if is_prefixed and setting not in DECIDED_BY_CHART | REFUSES_PROBES and not _is_secret(field.annotation):
            found[setting] = {key: fields[name][key] for key in KEPT_OF_A_FIELD if key in fields[name]}
    return {"type": "object", "additionalProperties": False, "properties": dict(sorted(found.items()))}


def _is_secret(annotation: object) -> bool:
    return "SecretStr" in str(annotation) or annotation is SecretStr


def schema() -> str:
    """Return the schema's text with the fleet's services and settings in it."""
    document = json.loads(SCHEMA.read_text())
    definitions = document["definitions"]
    names = [service.name for service in FLEET.services]
    for stale in [name for name in definitions if name.startswith("settings")]:
        del definitions[stale]
    definitions["settingsOfAll"] = settings_schema(Settings, "")
    for service in FLEET.services:
        definitions[f"settings-{service.name}"] = settings_schema(settings_of(service), service.prefix)
    document["properties"]["services"]["properties"] = {
        name: {
            "allOf": [
                {"$ref": "#/definitions/service"},
                {"properties": {"settings": {"$ref": f"#/definitions/settings-{name}"}}},
            ]
        }
        for name in names
    }
    definitions["service"]["properties"]["calls"]["items"] = {"enum": ["*", *names]}
    return json.dumps(document, indent=2) + "\n"


def rows(values: str) -> Iterator[tuple[str, str, str]]:
    """Yield path, default and description of every value that has one."""
    path: list[tuple[int, str]] = []
    description = ""
    lines = values.splitlines()
    for at, line in enumerate(lines):
        if found := _DESCRIPTION.match(line):
            description = found["text"]
            continue
        found = _KEY.match(line)
        if not found:
            continue
        indent = len(found["indent"])
        while path and path[-1][0] >= indent:
            path.pop()
        path.append((indent, found["key"]))
        if description:
            yield ".".join(key for _, key in path), _default(found["value"], lines[at + 1 :], indent), description
        description = ""


def _default(value: str | None, below: list[str], indent: int) -> str:
    """Return what the table shows: the value on the line, or that it is a longer one."""
    if value:
        return f"`{value}`" if len(value) <= VALUE_CHARS_MAX else "see `values.yaml`"
    is_nested = bool(below) and len(below[0]) - len(below[0].lstrip()) > indent
    return "see `values.yaml`" if is_nested else ""


def readme() -> str:
    """Return the README with its table made anew."""
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    escaped = (
        f"| `{path}` | {default.replace('|', chr(92) + '|')} | {description.replace('|', chr(92) + '|')} |"
        for path, default, description in rows((CHART / "values.yaml").read_text())
    )
    table = "\n".join(("| value | default | meaning |", "|---|---|---|", *escaped))
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main(arguments: list[str]) -> str | None:
    stale = [path for path, text in ((SCHEMA, schema()), (README, readme())) if path.read_text() != text]
    if "--check" in arguments:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        return f"{names}: not current; `python charts/generate.py` writes it" if stale else None
    for path, text in ((SCHEMA, schema()), (README, readme())):
        path.write_text(text)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
