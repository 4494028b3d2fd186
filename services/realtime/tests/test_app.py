"""The assembled service: its settings, its document, its readiness.

Renew `openapi.json` with `ROUNDHOUSE_RENEW=1 .venv/bin/python -m pytest services/realtime/tests/test_app.py`.
"""

import json
import os
import secrets
from pathlib import Path

import pytest

from services.realtime.app import create
from services.realtime.domain.conduct import Limits
from services.realtime.settings import RealtimeSettings
from shared.settings import SettingsError, load
from shared.testing.client import running
from shared.testing.tokens import TokenMint

SNAPSHOT = Path(__file__).parents[1] / "openapi.json"


def test_the_document_is_the_one_on_file() -> None:
    current = create(RealtimeSettings(environment="test")).fastapi.openapi()
    if os.environ.get("ROUNDHOUSE_RENEW"):
        SNAPSHOT.write_text(json.dumps(current, indent=2, sort_keys=True) + "\n")
    assert json.loads(SNAPSHOT.read_text()) == current, "the contract has changed: renew the file as said above"


def test_the_limits_of_the_settings_are_those_of_the_domain() -> None:
    assert RealtimeSettings().limits == Limits()


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match="RH_REALTIME_ROOM_MAX"):
        load(RealtimeSettings, {"RH_REALTIME_ROOM_MAX": "3"})


async def test_ready_asks_the_bus() -> None:
    app = create(RealtimeSettings(nats_url=f"memory://{secrets.token_hex(4)}"), keys=TokenMint())
    async with running(app) as client:
        assert (await client.get("/ready")).json() == {"state": "ready", "checks": {"bus": "ok"}}


async def test_a_replica_whose_bus_is_away_is_not_ready() -> None:
    app = create(RealtimeSettings(nats_url=f"memory://{secrets.token_hex(4)}"), keys=TokenMint())
    async with running(app) as client:
        app.fastapi.state.parts.hub.bus.broker.available = False
        response = await client.get("/ready")
        assert response.status_code == 503
        assert response.json()["checks"] == {"bus": "failing"}


async def test_a_stream_without_a_bus_is_503_with_a_problem() -> None:
    mint = TokenMint()
    app = create(RealtimeSettings(nats_url=f"memory://{secrets.token_hex(4)}"), keys=mint)
    async with running(app) as client:
        app.fastapi.state.parts.hub.bus.broker.available = False
        response = await client.get("/sse/stream", headers=mint.bearer())
        assert response.status_code == 503
        assert response.json()["code"] == "bus_unavailable"
