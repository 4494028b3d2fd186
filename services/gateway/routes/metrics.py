"""Who may read the metrics; `/live`, `/ready` and the exposition itself are every service's."""

from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.domain.admission import admit
from services.gateway.model import Auth
from shared.identity import bearer_of
from shared.middleware import header_of
from shared.tokens import TokenVerifier


class MetricsGuard:
    """Asks for a token on `/metrics`, unless the request came in by the private port, where scrapers ask each replica."""

    def __init__(self, app: ASGIApp, verifier: TokenVerifier, *, auth: Auth, private_port: int | None) -> None:
        self._app = app
        self._verifier = verifier
        self._auth = auth
        self._private_port = private_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/metrics" and self._auth != "public":
            port = scope["server"][1] if scope["server"] else None
            if port is None or port != self._private_port:
                token = bearer_of(header_of(scope, b"authorization").decode("latin-1"))
                await admit(self._verifier, token, self._auth)
        await self._app(scope, receive, send)
