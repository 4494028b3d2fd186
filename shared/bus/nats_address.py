"""Where NATS is: a URL taken apart so that neither the driver nor a log ever holds the password in an address."""

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class NatsAddress:
    """`servers` have no credentials; a user without a password is a token."""

    servers: tuple[str, ...]
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def options(self) -> dict[str, str]:
        """The credentials as the driver takes them."""
        if self.user and self.password:
            return {"user": self.user, "password": self.password}
        return {"token": self.user} if self.user else {}


def parse_address(url: str) -> NatsAddress:
    """Read `nats://user:password@host:port`, several separated by commas; the first one's credentials go for all.

    Percent-escapes in credentials are decoded. Raises ValueError, which never shows the URL.
    """
    servers: list[str] = []
    user = password = ""
    for part in url.split(","):
        try:
            found = urlsplit(part.strip())
            host, port = found.hostname, found.port
        except ValueError:
            raise ValueError("the NATS URL is not of the form nats://user:password@host:port") from None
        if found.scheme not in ("nats", "tls") or not host or found.path not in ("", "/"):
            raise ValueError("the NATS URL is not of the form nats://user:password@host:port")
        if not servers:
            user, password = unquote(found.username or ""), unquote(found.password or "")
        shown = f"[{host}]" if ":" in host else host
        servers.append(f"{found.scheme}://{shown}:{port or 4222}")
    return NatsAddress(tuple(servers), user, password)
