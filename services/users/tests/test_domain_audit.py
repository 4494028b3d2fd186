"""Entries of the audit log: what they tell, and what they keep to themselves."""

from dataclasses import replace

import pytest

from services.users.domain.audit import differences, entry_of, shown
from services.users.model.records import Actor
from shared import context
from shared.ids import new_id
from shared.log import mask_email


@pytest.mark.parametrize(
    ("email", "masked"),
    [("ada@example.com", "a***@e***.com"), ("x@a.b.org", "x***@a***.org"), ("é@ü.example", "é***@ü***.example")],
)
def test_an_address_is_masked(email, masked):
    assert mask_email(email) == masked


def test_an_entry_knows_the_request_it_was_made_in():
    actor = Actor(new_id(), "user", "s")
    token = context.enter(context.RequestContext("r-1", forwarded_for="2001:db8:1:2:3::4, 10.0.0.1", peer="10.0.0.2"))
    try:
        entry = entry_of("user.updated", user_id="u", actor=actor)
    finally:
        context.leave(token)

    assert (entry.request_id, entry.address, entry.actor_id) == ("r-1", "2001:db8:1:2::", actor.user_id)
    assert (entry_of("user.updated").request_id, entry_of("user.updated").address) == ("", "")


def test_a_subject_that_is_no_user_is_nobody():
    assert entry_of("user.updated", actor=Actor("service:compute", "admin", "s")).actor_id == ""


def test_a_user_is_shown_without_address_and_name(make_user):
    told = shown(make_user("ada", email="secret@hidden.org", full_name="Augusta"))

    assert told == {"username": "ada", "email": "s***@h***.org", "full_name": "A***", "role": "user", "version": 1}


def test_differences_tell_the_changed_fields_and_never_a_password(make_user):
    user = make_user("ada", full_name="Augusta")
    changed = replace(user, full_name=None, version=2)

    before, after = differences(user, changed, {"full_name", "password"})

    assert before == {"full_name": "A***", "version": 1}
    assert after == {"full_name": None, "version": 2, "password": "changed"}
