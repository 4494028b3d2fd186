"""The platform's documentation: `/openapi.json`, and `/docs`, a page to read and try it by that loads nothing from elsewhere.

The page is Swagger UI as the package fastapi-swagger carries it.
"""

import asyncio
import gzip
import html
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from services.gateway.domain.catalogue import Catalogue
from services.gateway.domain.encodings import accepts_gzip
from shared.errors import NotFound

ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
PACKAGE = "fastapi-swagger"
PACKAGE_VERSION = version(PACKAGE)

REVALIDATED = "no-cache"
KEPT = "public, max-age=31536000, immutable"
"""For what has a version in its address."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # Its icons are in its style sheet.
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}

START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  filter: true,
  persistAuthorization: false,
  showExtensions: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Roundhouse API</title>
<link rel="icon" href="docs/assets/{html.escape(PACKAGE_VERSION)}/favicon-32x32.png">
<link rel="stylesheet" href="docs/assets/{html.escape(PACKAGE_VERSION)}/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<noscript>The document is at <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/assets/{html.escape(PACKAGE_VERSION)}/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""


def portal(catalogue: Catalogue) -> APIRouter:
    """Return the routes."""
    router = APIRouter()
    folder = Path(str(files("fastapi_swagger") / "resources"))

    @router.head("/openapi.json", include_in_schema=False)
    @router.get("/openapi.json", summary="This document", response_model=dict[str, object])
    async def openapi(request: Request) -> Response:
        shown = await catalogue.current()
        return _tagged(request, shown.body, shown.etag, "application/json")

    @router.head("/docs", include_in_schema=False)
    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return _tagged(request, PAGE.encode(), _tag_of(PAGE), "text/html", PAGE_HEADERS)

    @router.head("/docs/start.js", include_in_schema=False)
    @router.get("/docs/start.js", include_in_schema=False)
    async def start(request: Request) -> Response:
        return _tagged(request, START.encode(), _tag_of(START), "text/javascript")

    @router.head("/docs/assets/{asset_version}/{name}", include_in_schema=False)
    @router.get("/docs/assets/{asset_version}/{name}", include_in_schema=False)
    async def asset(request: Request, asset_version: str, name: str) -> Response:
        if asset_version != PACKAGE_VERSION or name not in ASSETS:
            raise NotFound
        headers = {"Cache-Control": KEPT, "Vary": "Accept-Encoding"}
        if accepts_gzip(request.headers.get("accept-encoding", "").encode("latin-1")):
            body = await asyncio.to_thread(_gzipped, folder / name)
            return Response(body, media_type=ASSETS[name], headers={**headers, "Content-Encoding": "gzip"})
        return FileResponse(folder / name, media_type=ASSETS[name], headers=headers)

    return router


@lru_cache(maxsize=len(ASSETS))
def _gzipped(path: Path) -> bytes:
    """Return a file compressed; once, since anybody may ask for it, and the largest takes tens of ms."""
    return gzip.compress(path.read_bytes(), mtime=0)


def _tag_of(text: str) -> str:
    return f'"{sha256(text.encode()).hexdigest()[:32]}"'


def _tagged(
    request: Request, body: bytes, etag: str, media_type: str, headers: dict[str, str] | None = None
) -> Response:
    """Return a body that caches ask for again each time, or 304 where they have it (RFC 9110, section 13.1.2)."""
    headers = {"Cache-Control": REVALIDATED, "ETag": etag, **(headers or {})}
    asked = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if not asked.isdisjoint({etag, "*"}):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
