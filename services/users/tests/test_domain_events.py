"""The events of users."""

import json
from datetime import datetime

from services.users.domain.events import event_of
from shared import context
from shared.bus.subjects import check_subject
from shared.ids import is_id


def test_an_event_is_a_cloudevent_with_the_outbox_id(make_user):
    user = make_user("Ada", role="admin", version=3)
    event = event_of(user, "updated", changed=["username", "email"])
    document = json.loads(event.payload)

    assert is_id(event.id)
    assert event.subject == "evt.users.user.updated.v1"
    check_subject(event.subject)
    assert datetime.fromisoformat(document.pop("time")).tzinfo is not None
    assert document == {
        "specversion": "1.0",
        "id": event.id,
        "source": "/users",
        "type": "users.user.updated",
        "subject": user.id,
        "datacontenttype": "application/json",
        "data": {"id": user.id, "username": "Ada", "role": "admin", "version": 3, "changed": ["email", "username"]},
    }


def test_an_event_tells_neither_address_nor_name(make_user):
    payload = event_of(make_user("Ada", email="secret@example.com", full_name="Augusta"), "created").payload

    assert b"secret" not in payload
    assert b"Augusta" not in payload


def test_an_event_carries_the_trace_of_its_request(make_user):
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    token = context.enter(context.RequestContext("r", traceparent=trace))
    try:
        event = event_of(make_user(), "created")
    finally:
        context.leave(token)

    assert json.loads(event.payload)["traceparent"] == trace
