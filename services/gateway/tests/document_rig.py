"""Documents as services say them, as small as they can be."""

from typing import Any

from services.gateway.domain.config import parse_config
from services.gateway.domain.defaults import default_config
from services.gateway.domain.documents import Own
from services.gateway.model import GatewayConfig

ROUTES = """
[[routes]]
path = "/books/*"
service = "books"
methods = ["GET", "POST"]
auth = "signed_in"
timeout_s = 7
body_bytes_max = 5000
limits = ["signed-in"]
cost = 3

[[routes]]
path = "/books/top"
service = "shops"
methods = ["GET"]
auth = "public"

[[routes]]
path = "/shops/*"
service = "shops"
methods = ["GET", "DELETE"]
auth = "admin"

[[routes]]
path = "/talk"
service = "shops"
methods = ["GET"]
auth = "public"
kind = "websocket"

[services.books]
retries_max = 1
"""


def config(text: str = ROUTES) -> GatewayConfig:
    return parse_config(text, default_config(is_production=False))


def operation(schema: str = "", **more: Any) -> dict[str, Any]:
    """An operation that answers with a schema of that name."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}} if schema else {}
    return {"responses": {"200": {"description": "found", "content": content}}, **more}


def document(paths: dict[str, Any], *, title: str = "A service", **schemas: Any) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


OWN = Own(
    document(
        {"/live": {"get": operation()}, "/metrics": {"get": operation()}, "/admin/gateway/x": {"get": operation()}},
        title="The gateway",
    ),
    "signed_in",
)
BOOK_ID = {"name": "book_id", "in": "path", "required": True, "schema": {"type": "string"}}
BOOKS = document(
    {
        "/books": {"get": operation("Page", operationId="list"), "post": operation(requestBody={"content": {}})},
        "/books/{book_id}": {"get": operation("Book", operationId="read", parameters=[BOOK_ID])},
    },
    title="Books",
    Page={"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
    Book={"type": "object"},
    Item={"type": "string"},
    Unused={"type": "null"},
)
SHOPS = document(
    {"/shops": {"get": operation("Page", operationId="list")}, "/books/top": {"get": operation("Shop")}},
    title="Shops",
    Page={"type": "object", "properties": {"shops": {"items": {"$ref": "#/components/schemas/Shop"}}}},
    Shop={"type": "object"},
)
