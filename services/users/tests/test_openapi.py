"""The API's description: the snapshot beside the code is the live document, so that a change shows in review."""

import json
import os
from pathlib import Path

from services.users.app import create

SNAPSHOT = Path(__file__).parents[1] / "openapi.json"


def test_the_snapshot_is_the_live_document(make_settings):
    live = create(make_settings()).fastapi.openapi()
    if os.environ.get("ROUNDHOUSE_RENEW"):
        SNAPSHOT.write_text(json.dumps(live, indent=2, sort_keys=True) + "\n")

    assert json.loads(SNAPSHOT.read_text()) == json.loads(json.dumps(live)), (
        "the API has changed: if that is meant, renew openapi.json as the service's README says"
    )


def test_no_answer_shows_a_hash():
    schemas = json.loads(SNAPSHOT.read_text())["components"]["schemas"]

    assert set(schemas["UserView"]["properties"]) == {
        "id",
        "username",
        "email",
        "email_verified",
        "full_name",
        "role",
        "created_at",
        "updated_at",
        "version",
    }
