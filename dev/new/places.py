"""Where a service is named outside its folder: the entries that are put in at the marks, and taken out again however they look by then.

A mark is a comment `# dev new: WORD`; entries go above it. They are found again by what they are, Python by its syntax tree and YAML
by its indentation, so an entry that was changed by hand is taken out whole.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass

from dev.errors import CannotRun

Edit = Callable[[str, str], str]


@dataclass(frozen=True, slots=True)
class Place:
    """One file, and how a service's name gets into its text and out of it."""

    path: str
    put_in: Edit
    take_out: Edit


FLEET_ENTRY = """\
Service(
    "{name}",
    "services.{name}",
    needs=("nats", "valkey"),
),
"""
NAME_ENTRY = '"{name}",\n'
ROUTE_ENTRIES = """\
Route(
    path="/{name}",
    service="{name}",
    methods=("POST",),
    auth="signed_in",
),
Route(
    path="/{name}/*",
    service="{name}",
    methods=(*_READ, "DELETE"),
    auth="signed_in",
),
"""
WAIT_ENTRY = "{name}: {{ condition: service_healthy }}\n"
CONTAINER_ENTRY = """\
{name}:
  <<: *service
  image: roundhouse-{name}:${{ROUNDHOUSE_TAG:-dev}}
  build: {{ context: ., args: {{ SERVICE: {name} }} }}
  environment:
    <<: *environment
    NATS_URL: *nats-url
    REDIS_URL: *redis-url
    RH_{upper}_HOST: 0.0.0.0
    RH_{upper}_PORT: 8000
    RH_{upper}_ENDPOINTS: *endpoints
  networks: [fleet, stores]
  depends_on:
    nats: {{ condition: service_healthy }}
    valkey: {{ condition: service_healthy }}
  deploy: {{ resources: {{ limits: {{ cpus: "1.0", memory: 192M, pids: 64 }} }} }}

"""
CHART_ENTRY = """\
{name}:
  stores: [nats, valkey]
"""


def above_marks(**entries: str) -> Edit:
    """Return an edit that writes each entry above the mark of its name, indented as the mark is. Raises CannotRun without one."""

    def put_in(text: str, name: str) -> str:
        for word, entry in entries.items():
            found = re.search(rf"^( *)# dev new: {word}$", text, re.MULTILINE)
            if found is None:
                raise CannotRun(f"the comment `# dev new: {word}` is missing: put it back where the entry belongs.")
            lines = entry.format(name=name, upper=name.upper()).splitlines(keepends=True)
            indented = "".join(f"{found[1]}{line}" if line.strip() else line for line in lines)
            text = text[: found.start()] + indented + text[found.start() :]
        return text

    return put_in


def without_python_entries(text: str, name: str) -> str:
    """Drop the elements of tuples that are the name, or calls like `Service(name, ...)` and `Route(service=name)`.

    Only elements on lines of their own count: a word in a tuple on one line is something else of that name.
    """
    lines = text.splitlines(keepends=True)
    dropped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        for element in node.elts if isinstance(node, ast.Tuple) else ():
            if _is_about(element, name) and _has_own_lines(element, lines):
                dropped.update(range(element.lineno, (element.end_lineno or element.lineno) + 1))
    return "".join(line for number, line in enumerate(lines, 1) if number not in dropped)


def _has_own_lines(element: ast.expr, lines: list[str]) -> bool:
    # The tree counts bytes, not characters.
    before = lines[element.lineno - 1].encode()[: element.col_offset]
    after = lines[(element.end_lineno or element.lineno) - 1].encode()[element.end_col_offset :]
    return not before.strip() and re.fullmatch(rb",?\s*(#.*)?", after.strip()) is not None


def _is_about(element: ast.expr, name: str) -> bool:
    if isinstance(element, ast.Call):
        said = [*element.args[:1], *(word.value for word in element.keywords if word.arg == "service")]
        return any(_is_about(item, name) for item in said if not isinstance(item, ast.Call))
    return isinstance(element, ast.Constant) and element.value == name


def without_yaml_entry(text: str, name: str) -> str:
    """Drop `name:` below the top-level key `services`, with all that is indented under it and the blank lines after it."""
    kept, in_services, in_entry = [], False, False
    for line in text.splitlines(keepends=True):
        if line.strip() and not line.startswith((" ", "#")):
            in_services = line.rstrip() == "services:"
        if line.strip() and not line.startswith("   "):
            in_entry = in_services and line.rstrip() == f"  {name}:"
        if not in_entry:
            kept.append(line)
    return "".join(kept)


def _into_compose(text: str, name: str) -> str:
    text = above_marks(depends_on=WAIT_ENTRY, services=CONTAINER_ENTRY)(text, name)
    text, count = re.subn(r"^(x-endpoints: .*)$", rf"\1,{name}={name}:8000", text, flags=re.MULTILINE)
    if count != 1:
        raise CannotRun("the line `x-endpoints:` is missing: put it back, other lines refer to it.")
    return text


def _out_of_compose(text: str, name: str) -> str:
    text = re.sub(rf"^ +{name}: \{{ condition: \w+ \}}\n", "", without_yaml_entry(text, name), flags=re.MULTILINE)
    return re.sub(rf"^(x-endpoints: .*),{name}={name}:\d+", r"\1", text, flags=re.MULTILINE)


PLACES = (
    Place("dev/fleet.py", above_marks(services=FLEET_ENTRY, stop_order=NAME_ENTRY), without_python_entries),
    Place("services/gateway/domain/defaults.py", above_marks(routes=ROUTE_ENTRIES), without_python_entries),
    Place("services/health/settings.py", above_marks(expected=NAME_ENTRY), without_python_entries),
    Place("compose.yaml", _into_compose, _out_of_compose),
    Place("charts/roundhouse/values.yaml", above_marks(services=CHART_ENTRY), without_yaml_entry),
)
