"""Why the service cannot start: reasons for whoever operates it, in one sentence each."""

from shared.errors import CannotStart


class StoreError(CannotStart):
    """The store cannot be used."""


class KeySealError(CannotStart):
    """The seal does not open a stored key."""
