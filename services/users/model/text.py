"""Rules of text: how a name, an e-mail address and a password are normalised and what each may hold."""

import re
import unicodedata

EMAIL_CHARS_MAX = 254
"""RFC 5321 allows a path of 256 octets with its angle brackets."""

PASSWORD_CHARS_MIN = 8
PASSWORD_CHARS_MAX = 128
PASSWORD_BYTES_MAX = 1024
"""What is hashed; more would let a client buy our CPU with one long text."""

FULL_NAME_CHARS_MAX = 100
LOGIN_CHARS_MAX = EMAIL_CHARS_MAX

_ATOM = r"[\w!#$%&'*+/=?^`{|}~-]+"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_EMAIL = re.compile(rf"(?P<local>{_ATOM}(?:\.{_ATOM})*)@(?:{_LABEL}\.)+(?!\d+$){_LABEL}")

# Controls, surrogates and unassigned code points; line separators; the marks that turn the direction of a text around.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Cn", "Zl", "Zp"})
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")


def fold(text: str) -> str:
    """Return a text in the form in which two spellings of it are equal (NFKC, case-folded, NFKC)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def normalise_email(text: str) -> str:
    """Return an e-mail address in the one form that is stored and compared. Raises ValueError when it is none."""
    found = fold(text.strip())
    match = _EMAIL.fullmatch(found)
    if len(found) > EMAIL_CHARS_MAX or match is None or len(match["local"].encode()) > 64:
        raise ValueError("must be an e-mail address such as ada@example.com")
    return found


def normalise_full_name(text: str) -> str | None:
    """Return a name in NFC without outer spaces, None when nothing is left. Raises ValueError for control characters."""
    found = unicodedata.normalize("NFC", text).strip()
    if _BIDI.search(found) or any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in found):
        raise ValueError("must not hold control characters")
    if len(found) > FULL_NAME_CHARS_MAX:
        raise ValueError(f"must have at most {FULL_NAME_CHARS_MAX} characters")
    return found or None


def normalise_password(text: str) -> str:
    """Return a password as it is hashed (NFKC: keyboards differ in how they compose). Raises ValueError when it cannot be one."""
    if "\x00" in text:
        raise ValueError("must not hold NUL")
    found = unicodedata.normalize("NFKC", text)
    try:
        size_bytes = len(found.encode())
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None
    if size_bytes > PASSWORD_BYTES_MAX:
        raise ValueError(f"must have at most {PASSWORD_BYTES_MAX} bytes")
    return found
