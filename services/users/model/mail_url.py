"""The URL that tells where mails go."""

from urllib.parse import urlsplit

SCHEMES = ("smtp", "smtps", "file", "memory")


def check_mail_url(url: str) -> None:
    """Raise ValueError, without the URL in it, where no mail can be sent there."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"must be a URL that begins with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if parts.scheme == "file" and (parts.netloc or parts.path in ("", "/") or parts.query):
        raise ValueError("must name a folder, such as file:///var/mail")
    if parts.scheme in ("smtp", "smtps"):
        _check_server(url)


def _check_server(url: str) -> None:
    parts = urlsplit(url)
    try:
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        has_port = False
    if not has_port or not parts.hostname or parts.path not in ("", "/") or parts.fragment:
        raise ValueError("must be a URL such as smtp://user:password@mail.example.com:587, special characters as %40")
    if parts.query not in ("", "tls=off") or (parts.query and parts.scheme == "smtps"):
        raise ValueError("knows nothing after a ? but tls=off, and that with smtp://")
