"""The edge models; the merge patch against RFC 7396."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter, ValidationError

from services.users.model.edge import NewUser, UserPatch, UserReplacement
from services.users.routes.users import _changes

PATCH = TypeAdapter(UserPatch)
REPLACEMENT = TypeAdapter(UserReplacement)

# Values in their normal form, so that what was sent can be compared with what is stored.
VALUES = {
    "username": st.from_regex(r"\A[A-Za-z0-9._-]{3,32}\Z"),
    "email": st.from_regex(r"\A[a-z0-9]{1,20}@[a-z]{1,20}\.com\Z"),
    "full_name": st.none() | st.from_regex(r"\A[A-Za-z]{1,20}\Z"),
    "role": st.sampled_from(["user", "admin"]),
}


def merge_patch(target: Any, patch: Any) -> Any:
    """MergePatch of RFC 7396, section 2, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merge_patch(found.get(name), value)
    return found


@settings(max_examples=50)
@given(st.fixed_dictionaries({}, optional=VALUES), st.fixed_dictionaries(VALUES))
def test_a_patch_does_what_the_rfc_says(patch, target):
    changes = _changes(PATCH.validate_json(json.dumps(patch)))

    patched = {**target, **changes}
    assert {name: value for name, value in patched.items() if value is not None} == {
        name: value for name, value in merge_patch(target, patch).items() if value is not None
    }


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9) | st.sampled_from([*VALUES]), inner)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_patch_or_refused(document):
    try:
        found = PATCH.validate_python(document)
    except ValidationError:
        return
    assert set(found) <= {*VALUES, "password"}


@pytest.mark.parametrize("field", ["username", "email", "password", "role"])
def test_null_clears_only_the_full_name(field):
    with pytest.raises(ValidationError):
        PATCH.validate_python({field: None})
    assert PATCH.validate_python({"full_name": None}) == {"full_name": None}


@pytest.mark.parametrize("field", ["id", "version", "created_at", "password_hash", "is_admin", "__proto__"])
@pytest.mark.parametrize("model", [PATCH, REPLACEMENT, TypeAdapter(NewUser)])
def test_fields_that_are_not_the_clients_are_refused(model, field):
    body = {"username": "ada", "email": "ada@example.com", field: "x"}
    if model is not PATCH:
        body["password"] = "correct horse"

    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.validate_python(body)


def test_a_replacement_names_all_that_is_required():
    with pytest.raises(ValidationError):
        REPLACEMENT.validate_python({"username": "ada"})
    assert REPLACEMENT.validate_python({"username": "ada", "email": "ADA@example.com"}) == {
        "username": "ada",
        "email": "ada@example.com",
    }


def test_a_password_is_neither_shown_nor_told():
    user = NewUser(username="ada", email="ada@example.com", password=SecretStr("correct horse"))

    assert "correct" not in repr(user)
    with pytest.raises(ValidationError) as caught:
        NewUser.model_validate(
            {"username": "ada", "email": "ada@example.com", "password": "secret1", "x": "correct horse"}
        )
    assert "secret1" not in str(caught.value)
    assert "horse" not in str(caught.value)
