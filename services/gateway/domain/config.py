"""The configuration file: TOML, checked whole before any of it is used."""

import tomllib
from typing import Any

from pydantic import TypeAdapter, ValidationError

from services.gateway.domain.routing import RouteTable, RouteTableError, table_of
from services.gateway.model import Addresses, Cors, GatewayConfig, Limit, Route, ServicePolicy

_SECTIONS: dict[str, TypeAdapter[Any]] = {
    "limits": TypeAdapter(tuple[Limit, ...]),
    "services": TypeAdapter(dict[str, ServicePolicy]),
    "addresses": TypeAdapter(Addresses),
    "cors": TypeAdapter(Cors),
}


class ConfigError(ValueError):
    """The file does not describe a gateway that can serve; the text names the place and the fix."""


def parse_config(text: str, base: GatewayConfig) -> GatewayConfig:
    """Read a file that replaces parts of `base`: `[[routes]]`, `[[limits]]`, `[services.NAME]`, `[addresses]`, `[cors]`.

    Raises ConfigError.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration is not TOML: {error}") from error
    unknown = sorted(set(data) - {"routes", *_SECTIONS})
    if unknown:
        raise ConfigError(f"{unknown[0]} is no section; known are routes, {', '.join(_SECTIONS)}")
    found: dict[str, Any] = {}
    if "routes" in data:
        rows = data["routes"]
        if not isinstance(rows, list) or not rows:
            raise ConfigError("routes must be one or more [[routes]] tables")
        found["routes"] = tuple(_route(number, row) for number, row in enumerate(rows, start=1))
    for name, adapter in _SECTIONS.items():
        if name in data:
            found[name] = _section(name, adapter, data[name])
    config = base.model_copy(update=found)
    check(config)
    return config


def check(config: GatewayConfig) -> RouteTable[Route]:
    """Return the table of a configuration whose parts fit together. Raises ConfigError."""
    names = [limit.name for limit in config.limits]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"limit {name}: there are two of that name")
    for route in config.routes:
        for name in route.limits:
            if name not in names:
                known = f"known are {', '.join(names)}" if names else "there are none; write a [[limits]] table"
                raise ConfigError(f"route {route.path}: limit {name} does not exist; {known}")
    try:
        return table_of(config.routes)
    except RouteTableError as error:
        raise ConfigError(str(error)) from None


def _section(name: str, adapter: TypeAdapter[Any], value: object) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_faults(error)}") from None


def _route(number: int, row: object) -> Route:
    try:
        return Route.model_validate(row)
    except ValidationError as error:
        path = row.get("path") if isinstance(row, dict) else None
        name = f"route {path}" if isinstance(path, str) else f"route number {number}"
        raise ConfigError(f"{name[:120]}: {_faults(error)}") from None


def _faults(error: ValidationError) -> str:
    faults = []
    for item in error.errors(include_input=False, include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        faults.append(f"{field}: {item['msg']}" if field else str(item["msg"]))
    return "; ".join(faults)
