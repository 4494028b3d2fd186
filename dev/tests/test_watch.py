"""Facts about which change touches which service."""

from pathlib import Path

import pytest

from dev.fleet import FLEET
from dev.watch import touched

ROOT = Path("/checkout")
ALL = [service.name for service in FLEET.services]


@pytest.mark.parametrize(
    ("path", "services"),
    [
        ("services/users/domain.py", ["users"]),
        ("services/users/migrations/0001_users.sql", ["users"]),
        ("services/users/tests/test_domain.py", []),
        ("services/users/README.md", []),
        ("services/users/__pycache__/domain.cpython-311.pyc", []),
        ("services/users/.domain.py.swp", []),
        ("services/users/domain.py~", []),
        ("shared/errors.py", ALL),
        ("shared/tests/test_errors.py", []),
        ("dev/up.py", []),
    ],
)
def test_a_change_touches_its_own_service_only(path: str, services: list[str]) -> None:
    assert touched(FLEET, ROOT, [str(ROOT / path)]) == services


def test_a_burst_touches_each_service_once() -> None:
    paths = [str(ROOT / f"services/{name}") for name in ("users/a.py", "gateway/b.py", "users/c.py")]

    assert touched(FLEET, ROOT, paths) == ["users", "gateway"]


def test_a_path_outside_the_checkout_touches_nothing() -> None:
    assert touched(FLEET, ROOT, ["/elsewhere/services/users/a.py"]) == []
