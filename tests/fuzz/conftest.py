"""The fuzz lane: runs where its folder is named; else one line says how."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not any("tests/fuzz" in str(argument) for argument in config.invocation_params.args):
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="make fuzz tries the OpenAPI document"))
