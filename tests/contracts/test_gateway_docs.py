"""docs/gateway-configuration.md describes the configuration as it is: every key with its default, and examples that can be used."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from services.gateway.domain.config import parse_config
from services.gateway.domain.defaults import default_config
from services.gateway.model import Addresses, BreakerPolicy, Cors, Limit, Route, ServicePolicy

PAGE = (Path(__file__).parents[2] / "docs" / "gateway-configuration.md").read_text()
PARTS: dict[str, type[BaseModel]] = {
    "## `[[routes]]`": Route,
    "## `[[limits]]`": Limit,
    "## `[services.NAME]`": ServicePolicy,
    "`breaker`, in": BreakerPolicy,
    "## `[addresses]`": Addresses,
    "## `[cors]`": Cors,
}


def rows_after(heading: str) -> dict[str, str]:
    """Keys and defaults of the first table after a heading."""
    table = re.search(r"\n\| key \|.*?(?=\n\n|\Z)", PAGE.partition(heading)[2], re.DOTALL)
    assert table is not None, heading
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table[0], re.MULTILINE))


def as_toml(value: object) -> str:
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case str():
            return f'`"{value}"`'
        case tuple():
            return f"`{list(value)}`"
        case None:
            return "none"
        case BaseModel():
            return "below"
    return "required" if value is PydanticUndefined else f"`{value}`"


@pytest.mark.parametrize("heading", PARTS)
def test_every_key_is_there_with_its_default(heading: str) -> None:
    fields = PARTS[heading].model_fields
    defaults = {name: as_toml(field.get_default(call_default_factory=True)) for name, field in fields.items()}
    assert rows_after(heading) == defaults


def test_the_example_can_be_used() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    config = parse_config(example, default_config(is_production=True))
    assert config.services["orders"].breaker.slow_s == 2
    assert {limit.name for limit in config.limits} == {"per-user", "expensive"}
