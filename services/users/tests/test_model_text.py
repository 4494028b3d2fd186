"""The rules of text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.users.model.text import fold, normalise_email, normalise_full_name, normalise_password


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("ada@example.com", "ada@example.com"),
        (" ADA@Example.COM ", "ada@example.com"),
        ("ada+tag@mail.example.co.uk", "ada+tag@mail.example.co.uk"),
        ("\uff41da@example.com", "ada@example.com"),
        ("Stra\u00dfe@example.com", "strasse@example.com"),
        ("\u00c4da@b\u00fccher.example", "\u00e4da@b\u00fccher.example"),
        ("o'brien@example.ie", "o'brien@example.ie"),
    ],
)
def test_an_address_has_one_form(given_text, expected):
    assert normalise_email(given_text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada",
        "ada@",
        "@example.com",
        "ada@example",
        "ada@@example.com",
        "a da@example.com",
        "ada@exa mple.com",
        ".ada@example.com",
        "ada.@example.com",
        "a..da@example.com",
        "ada@-example.com",
        "ada@example-.com",
        "ada@example..com",
        "ada@127.0.0.1",
        "ada@example.com\x00",
        "ada\n@example.com",
        "ada@example.com\r\nBcc: all@example.com",
        "\ud800@example.com",
        "<script>@example.com",
        '"quoted"@example.com',
        "a" * 65 + "@example.com",
        "a@" + "b" * 64 + ".com",
        "a@" + "b." * 130 + "com",
        "ada@example.com,bob@example.com",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="e-mail"):
        normalise_email(text)


@given(st.text(max_size=60))
def test_a_normal_address_stays_as_it_is(text):
    try:
        found = normalise_email(f"{text}@example.com")
    except ValueError:
        return
    assert normalise_email(found) == found
    assert found == fold(found)
    assert not any(character.isspace() or unicodedata.category(character).startswith("C") for character in found)


@given(st.text())
def test_folding_twice_is_folding_once(text):
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" Ada  L ", "Ada  L"), ("", None), (" \u00a0 ", None), ("e\u0301", "\u00e9"), ("O'Hara-\u674e", "O'Hara-\u674e")],
)
def test_a_name_is_composed_and_trimmed(text, expected):
    assert normalise_full_name(text) == expected


@pytest.mark.parametrize(
    "text", ["a\x00b", "a\nb", "a\x1b[31m", "a\x7fb", "a\u202eb", "a\u2028b", "\ud800", "\U000e0080", "x" * 101]
)
def test_a_name_with_controls_is_refused(text):
    with pytest.raises(ValueError, match="must"):
        normalise_full_name(text)


@pytest.mark.parametrize("text", ["a\x00bcdefgh", "\ud800abcdefgh", "\ufdfa" * 128])
def test_a_password_that_cannot_be_hashed_is_refused(text):
    with pytest.raises(ValueError, match="must"):
        normalise_password(text)
