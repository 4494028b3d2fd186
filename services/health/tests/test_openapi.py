"""The checked-in `openapi.json` is what the service says of itself.

Renew it with `ROUNDHOUSE_RENEW=1 .venv/bin/python -m pytest services/health/tests/test_openapi.py`.
"""

import json
import os
from pathlib import Path

from services.health.app import create
from services.health.settings import HealthSettings

SNAPSHOT = Path(__file__).resolve().parents[1] / "openapi.json"


def test_the_snapshot_is_current() -> None:
    current = create(HealthSettings(environment="test")).fastapi.openapi()
    if os.environ.get("ROUNDHOUSE_RENEW"):
        SNAPSHOT.write_text(json.dumps(current, indent=2, sort_keys=True) + "\n")
    assert json.loads(SNAPSHOT.read_text()) == current, "the contract has changed: renew the snapshot as said above"
