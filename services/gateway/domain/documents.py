"""One OpenAPI 3.1 document of many: the operations that routes let through, and components under names that do not collide.

Terms and rules: OpenAPI Specification 3.1.1. A document is what `json` makes of one: dicts, lists, texts and numbers.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from services.gateway.domain.document_policies import Document, policies_of, refusal_components, refusals_of
from services.gateway.domain.routing import table_of
from services.gateway.model import Auth, GatewayConfig, Route
from shared.errors import Problem

State = Literal["live", "stale", "absent"]

GATEWAY = "gateway"
DEPTH_MAX = 100
"""Of a service's document: no schema of a person is so deep, and what reads or writes one may recurse."""

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_KINDS = ("schemas", "responses", "parameters", "examples", "requestBodies", "headers", "links", "callbacks")
_PREFIX = "#/components/"
_SCHEME = "bearer"


class UnreadableDocument(ValueError):
    """A service's document cannot be part of another; the text says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """A service and its document as it is known; `reason` says why it is not `live`."""

    name: str
    document: Document | None
    state: State = "live"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Own:
    """The gateway's own document, and who reads its metrics."""

    document: Document
    metrics_auth: Auth


@dataclass(frozen=True, slots=True)
class _Operation:
    path: str
    method: str
    content: Document
    route: Route | None
    """None for the gateway's own."""


@dataclass(slots=True)
class _Part:
    """What one service adds; `names` holds by kind and own name the name that a component has in the whole."""

    owner: str
    operations: list[_Operation]
    components: dict[tuple[str, str], Any]
    names: dict[tuple[str, str], str] = field(default_factory=dict)

    def ref(self, kind: str, name: str) -> Document:
        return {"$ref": f"{_PREFIX}{kind}/{self.names[kind, name]}"}


def check_document(found: object) -> Document:
    """Return a service's document when it can be merged. Raises UnreadableDocument."""
    if not isinstance(found, dict) or not str(found.get("openapi", "")).startswith("3.1."):
        raise UnreadableDocument("it is no OpenAPI 3.1 document")
    _check_depth(found)
    try:
        orjson.dumps(found)
    except TypeError as fault:
        raise UnreadableDocument(f"it cannot be written as JSON again: {fault}") from None
    paths = found.get("paths", {})
    if not isinstance(paths, dict) or not all(isinstance(item, dict) and "$ref" not in item for item in paths.values()):
        raise UnreadableDocument("its paths are not readable")
    operations = list(_operations(found, lambda *_: True))
    if not all(isinstance(o.content.get("responses", {}), dict) for o in operations):
        raise UnreadableDocument("its responses are not readable")
    _used_components(found, operations)
    return found


def merge(config: GatewayConfig, own: Own, sources: Iterable[Source]) -> Document:
    """Return the document of all that the gateway answers; `sources` are the services of the routes."""
    sources = list(sources)
    gateway = _own_part(own)
    parts = [gateway, *(_part(config, source) for source in sources)]
    _name_components(parts)
    ids = _operation_ids(parts)
    paths: dict[str, Document] = {}
    for part in parts:
        for operation in part.operations:
            shown = _shown(part, operation, ids)
            _add_policies(shown, operation, config, own, gateway)
            paths.setdefault(operation.path, {})[operation.method] = shown
    components: dict[str, Document] = {"securitySchemes": {_SCHEME: _scheme()}}
    for part in parts:
        for (kind, name), content in part.components.items():
            components.setdefault(kind, {})[part.names[kind, name]] = _renamed(content, part)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Roundhouse",
            "version": str(own.document["info"]["version"]),
            "description": "All that the platform answers at one address. Sign in with `POST /auth/token`.",
        },
        "servers": [{"url": "/", "description": "The gateway that this document came from."}],
        "tags": [*(_tag(source.name, source.document) for source in sources), _tag(GATEWAY, own.document)],
        "paths": dict(sorted(paths.items())),
        "components": components,
        "x-roundhouse": {
            "services": {source.name: _state_of(source) for source in sources},
            "websockets": [policies_of(config, route, "GET") for route in config.routes if route.kind == "websocket"],
        },
    }


def _scheme() -> Document:
    return {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The access_token of POST /auth/token.",
    }


def _tag(name: str, document: Document | None) -> Document:
    info = (document or {}).get("info")
    title = info.get("title") if isinstance(info, dict) else None
    return {"name": name, "description": title} if isinstance(title, str) else {"name": name}


def _state_of(source: Source) -> Document:
    return {"state": source.state, **({"reason": source.reason} if source.reason else {})}


def _check_depth(document: Document) -> None:
    level: list[Any] = [document]
    for _ in range(DEPTH_MAX):
        level = [inner for node in level for inner in _inner(node)]
        if not level:
            return
    raise UnreadableDocument(f"it is nested over {DEPTH_MAX} levels deep")


def _inner(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _operations(document: Document, takes: Callable[[str, str], Route | bool | None]) -> Iterator[_Operation]:
    """Yield the operations that `takes` a path and a method, each with the parameters of its path."""
    for path, item in document.get("paths", {}).items():
        for method in METHODS:
            content = item.get(method)
            if not isinstance(content, dict):
                continue
            found = takes(path, method.upper())
            if found:
                parameters = _parameters(item, content)
                content = {**content, **({"parameters": parameters} if parameters else {})}
                yield _Operation(path, method, content, found if isinstance(found, Route) else None)


def _parameters(item: Document, content: Document) -> list[Any]:
    """Return an operation's parameters with those of its path, which its own replace."""
    own = _listed(content.get("parameters"))
    replaced = [(parameter.get("name"), parameter.get("in")) for parameter in own if isinstance(parameter, dict)]
    return [
        *(
            p
            for p in _listed(item.get("parameters"))
            if not isinstance(p, dict) or (p.get("name"), p.get("in")) not in replaced
        ),
        *own,
    ]


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _part(config: GatewayConfig, source: Source) -> _Part:
    table = table_of(config.routes)

    def takes(path: str, method: str) -> Route | None:
        # A `{parameter}` is no segment that a route can name, so it is found where any value of it would be.
        try:
            route = table.resolve(method, path)
        except Problem:
            return None
        return route if route is not None and route.service == source.name else None

    document = source.document or {}
    operations = list(_operations(document, takes))
    return _Part(source.name, operations, _used_components(document, operations))


def _own_part(own: Own) -> _Part:
    operations = list(_operations(own.document, lambda *_: True))
    components = _used_components(own.document, operations)
    components |= refusal_components()
    return _Part(GATEWAY, operations, components)


def _used_components(document: Document, operations: Iterable[_Operation]) -> dict[tuple[str, str], Any]:
    """Return what operations refer to, and what that refers to. Raises UnreadableDocument where a reference leads nowhere."""
    found: dict[tuple[str, str], Any] = {}
    held = document.get("components", {})
    left: list[Any] = [operation.content for operation in operations]
    while left:
        node = left.pop()
        left.extend(_inner(node))
        for ref in _refs(node):
            kind, _, name = ref.removeprefix(_PREFIX).partition("/")
            if (kind, name) in found:
                continue
            try:
                found[kind, name] = held[kind][name]
            except (KeyError, TypeError):
                raise UnreadableDocument(f"it refers to {ref[:200]}, which it does not hold") from None
            if kind not in _KINDS:
                raise UnreadableDocument(f"it refers to {ref[:200]}, which is no component that can be merged")
            left.append(found[kind, name])
    return found


def _refs(node: Any) -> list[str]:
    """Return the references that a node itself makes: `$ref`, and the values of a discriminator's mapping."""
    if not isinstance(node, dict):
        return []
    ref = node.get("$ref")
    discriminator = node.get("discriminator")
    mapping = discriminator.get("mapping") if isinstance(discriminator, dict) else None
    mapped = mapping.values() if isinstance(mapping, dict) else ()
    return [*([ref] if isinstance(ref, str) else ()), *(text for text in mapped if str(text).startswith(_PREFIX))]


def _name_components(parts: Sequence[_Part]) -> None:
    """Give every component its name: its own where nobody else has that, else with its service before it."""
    claims = Counter(key for part in parts for key in part.components)
    taken = set(claims)
    for part in parts:
        for kind, name in part.components:
            shown = name
            if claims[kind, name] > 1:
                shown = f"{part.owner}_{name}"
                while (kind, shown) in taken:
                    shown += "_"
                taken.add((kind, shown))
            part.names[kind, name] = shown


def _operation_ids(parts: Sequence[_Part]) -> dict[tuple[str, str], str]:
    """Return the id of each operation by path and method: unique in the whole, as generators of clients need it."""
    claims: dict[str, list[tuple[str, _Operation]]] = {}
    for part in parts:
        for operation in part.operations:
            if "operationId" in operation.content:
                claims.setdefault(str(operation.content["operationId"]), []).append((part.owner, operation))
    found: dict[tuple[str, str], str] = {}
    taken = set(claims)
    for own_id, claimed in claims.items():
        for owner, operation in claimed:
            shown = own_id
            if len(claimed) > 1:
                shown = f"{owner}_{own_id}"
                while shown in taken:
                    shown += "_"
                taken.add(shown)
            found[operation.path, operation.method] = shown
    return found


def _shown(part: _Part, operation: _Operation, ids: dict[tuple[str, str], str]) -> Document:
    dropped = {"servers", "security", "tags", "operationId"}
    found: Document = {"tags": [part.owner]}
    if (operation.path, operation.method) in ids:
        found["operationId"] = ids[operation.path, operation.method]
    found |= {key: _renamed(value, part) for key, value in operation.content.items() if key not in dropped}
    return found


def _renamed(node: Any, part: _Part) -> Any:
    """Return a copy whose references have the names of the whole."""
    if isinstance(node, list):
        return [_renamed(inner, part) for inner in node]
    if not isinstance(node, dict):
        return node
    found = {key: _renamed(value, part) for key, value in node.items()}
    if isinstance(node.get("$ref"), str):
        found["$ref"] = _new_ref(node["$ref"], part)
    discriminator = node.get("discriminator")
    if isinstance(discriminator, dict) and isinstance(discriminator.get("mapping"), dict):
        mapping = {tag: _new_ref(ref, part) for tag, ref in discriminator["mapping"].items()}
        found["discriminator"] = {**discriminator, "mapping": mapping}
    return found


def _new_ref(ref: Any, part: _Part) -> Any:
    """Return a reference under the names of the whole; what a mapping may hold beside references stays as it is."""
    if not str(ref).startswith(_PREFIX):
        return ref
    kind, _, name = str(ref).removeprefix(_PREFIX).partition("/")
    return f"{_PREFIX}{kind}/{part.names[kind, name]}"


def _own_auth(path: str, own: Own) -> Auth:
    if path == "/metrics":
        return own.metrics_auth
    return "admin" if path.startswith("/admin/") else "public"


def _add_policies(shown: Document, operation: _Operation, config: GatewayConfig, own: Own, gateway: _Part) -> None:
    """Add what the gateway does with an operation: who may call it, under which limits, and the answers that it gives itself."""
    route = operation.route
    auth = route.auth if route is not None else _own_auth(operation.path, own)
    # Some routes are open because the service checks the token, and its document says so.
    needs_token = auth != "public" or bool(operation.content.get("security"))
    shown["security"] = [{_SCHEME: []}] if needs_token else []
    if route is not None:
        shown["x-roundhouse"] = policies_of(config, route, operation.method.upper())
    else:
        shown["x-roundhouse"] = {"route": operation.path, "service": GATEWAY, "access": auth, "rate_limits": []}
    responses = shown.setdefault("responses", {})
    for refusal in refusals_of(config, route, auth, has_body="requestBody" in operation.content):
        responses.setdefault(str(refusal.status), gateway.ref("responses", refusal.__name__))
