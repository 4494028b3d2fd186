"""Why the service cannot start: reasons for whoever operates it, in one sentence each."""


class StartRefused(Exception):
    """Starting again will not help until something is changed; the text says what."""


class StoreError(StartRefused):
    """The store cannot be used."""


class KeySealError(StartRefused):
    """The seal does not open a stored key."""
