"""One document of many: what is shown, under which names, and what the gateway adds to it."""

import json
from copy import deepcopy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.gateway.domain.documents import (
    DEPTH_MAX,
    Own,
    Source,
    UnreadableDocument,
    check_document,
    merge,
)
from services.gateway.tests.document_rig import BOOKS, OWN, ROUTES, SHOPS, config, document, operation


def merged(*sources: Source, text: str = ROUTES, own: Own = OWN) -> dict[str, Any]:
    sources = sources or (Source("books", BOOKS), Source("shops", SHOPS))
    found = merge(config(text), own, sources)
    OpenAPIV31SpecValidator(found).validate()
    return found


def refs(node: object) -> set[str]:
    text = json.dumps(node)
    return {part.split('"')[0] for part in text.split('"$ref": "')[1:]}


def test_operations_of_all_services_and_of_the_gateway_are_shown_each_under_its_service() -> None:
    found = merged()
    shown = {(p, m): o["tags"] for p, item in found["paths"].items() for m, o in item.items()}
    assert shown == {
        ("/books", "get"): ["books"],
        ("/books", "post"): ["books"],
        ("/books/{book_id}", "get"): ["books"],
        ("/books/top", "get"): ["shops"],
        ("/shops", "get"): ["shops"],
        ("/live", "get"): ["gateway"],
        ("/metrics", "get"): ["gateway"],
        ("/admin/gateway/x", "get"): ["gateway"],
    }
    assert found["tags"] == [
        {"name": "books", "description": "Books"},
        {"name": "shops", "description": "Shops"},
        {"name": "gateway", "description": "The gateway"},
    ]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/admin/secrets", "get"),  # no route knows it
        ("/books", "delete"),  # the route does not let that method through
        ("/books/{book_id}", "trace"),
        ("/books/top", "get"),  # this is another service's by its route
        ("/shops", "get"),
        ("/talk", "get"),  # a WebSocket's address
        ("books", "get"),
    ],
)
def test_an_operation_that_does_not_reach_the_service_is_not_shown(path: str, method: str) -> None:
    found = merged(Source("books", document({path: {method: operation()}})))
    assert set(found["paths"]) == {"/live", "/metrics", "/admin/gateway/x"}


def test_components_of_the_same_name_have_their_service_before_it_and_the_others_their_own() -> None:
    found = merged()
    schemas = found["components"]["schemas"]
    assert set(schemas) == {"books_Page", "shops_Page", "Book", "Item", "Shop", "Problem", "FieldError"}
    assert schemas["books_Page"]["items"] == {"$ref": "#/components/schemas/Item"}
    assert refs(found["paths"]["/books"]["get"]["responses"]["200"]) == {"#/components/schemas/books_Page"}
    assert refs(found["paths"]["/shops"]["get"]["responses"]["200"]) == {"#/components/schemas/shops_Page"}


def test_a_name_made_for_a_collision_takes_none_that_is_there() -> None:
    shops = document(
        {"/shops": {"get": operation("Page")}, "/shops/x": {"get": operation("books_Page")}},
        Page={"type": "object"},
        books_Page={"type": "null"},
    )
    schemas = merged(Source("books", BOOKS), Source("shops", shops))["components"]["schemas"]
    assert schemas["books_Page"] == {"type": "null"}
    assert schemas["books_Page_"]["type"] == "array"


def test_a_services_problem_does_not_replace_the_gateways() -> None:
    books = document({"/books": {"get": operation("Problem")}}, Problem={"type": "string"})
    found = merged(Source("books", books))
    assert found["components"]["schemas"]["books_Problem"] == {"type": "string"}
    unauthorized = found["components"]["responses"]["Unauthorized"]["content"]["application/problem+json"]
    assert unauthorized == {"schema": {"$ref": "#/components/schemas/gateway_Problem"}}


def test_operation_ids_are_unique_in_the_whole() -> None:
    found = merged()
    assert found["paths"]["/books"]["get"]["operationId"] == "books_list"
    assert found["paths"]["/shops"]["get"]["operationId"] == "shops_list"
    assert found["paths"]["/books/{book_id}"]["get"]["operationId"] == "read"


def test_a_discriminators_mapping_follows_the_names() -> None:
    cat = {"discriminator": {"propertyName": "kind", "mapping": {"cat": "#/components/schemas/Page", "plain": "Page"}}}
    books = document({"/books": {"get": operation("Cat")}}, Cat=cat, Page={"type": "string"})
    schemas = merged(Source("books", books), Source("shops", SHOPS))["components"]["schemas"]
    mapping = schemas["Cat"]["discriminator"]["mapping"]
    assert mapping == {"cat": "#/components/schemas/books_Page", "plain": "Page"}


def test_parameters_of_a_path_are_its_operations_unless_these_have_their_own() -> None:
    def parameter(name: str, text: str) -> dict[str, Any]:
        return {"name": name, "in": "path", "required": True, "description": text, "schema": {}}

    books = document(
        {
            "/books/{a}/{b}": {
                "parameters": [parameter("a", "of the path"), parameter("b", "of the path")],
                "get": operation(parameters=[parameter("b", "its own")]),
            }
        }
    )
    shown = merged(Source("books", books))["paths"]["/books/{a}/{b}"]["get"]["parameters"]
    assert [(p["name"], p["description"]) for p in shown] == [("a", "of the path"), ("b", "its own")]


def test_an_operation_says_what_its_route_does() -> None:
    paths = merged()["paths"]
    assert paths["/books"]["get"]["x-roundhouse"] == {
        "route": "/books/*",
        "service": "books",
        "access": "signed_in",
        "kind": "http",
        "rate_limits": [
            {
                "name": "signed-in",
                "by": "user",
                "quota": 600,
                "window_s": 60.0,
                "applies_to": "signed_in",
                "tiers": {},
                "counts": "requests",
                "cost": 3,
            }
        ],
        "deadline_s": 7.0,
        "retries": {"max": 1, "needs_idempotency_key": False},
        "body_bytes_max": 5000,
    }
    assert paths["/books"]["post"]["x-roundhouse"]["retries"] == {"max": 1, "needs_idempotency_key": True}
    assert paths["/metrics"]["get"]["x-roundhouse"]["access"] == "signed_in"
    assert paths["/admin/gateway/x"]["get"]["x-roundhouse"]["access"] == "admin"


def test_what_needs_a_token_says_so_and_nothing_else_does() -> None:
    checked_by_the_service = document({"/books/top": {"get": operation(security=[{"Own": []}])}})
    paths = merged(Source("books", BOOKS), Source("shops", SHOPS))["paths"]
    assert paths["/books"]["get"]["security"] == [{"bearer": []}]
    assert paths["/books/top"]["get"]["security"] == []
    assert paths["/live"]["get"]["security"] == []
    assert paths["/admin/gateway/x"]["get"]["security"] == [{"bearer": []}]
    found = merged(Source("shops", checked_by_the_service))
    assert found["paths"]["/books/top"]["get"]["security"] == [{"bearer": []}]
    assert set(found["components"]["securitySchemes"]) == {"bearer"}


def test_answers_that_the_gateway_gives_itself_are_shared_and_follow_the_route() -> None:
    found = merged()
    paths = found["paths"]

    def own_answers(path: str, method: str) -> set[str]:
        return {
            response["$ref"].rpartition("/")[2]
            for response in paths[path][method]["responses"].values()
            if "$ref" in response
        }

    always = {"BadRequest", "UriTooLong", "HeadTooLarge"}
    behind = {*always, "BadGateway", "Unavailable", "DeadlineExceeded"}
    of_bodies = {"BodyTooLarge", "UnsupportedMediaType"}
    assert own_answers("/books", "get") == {"Unauthorized", "TooManyRequests", *behind}
    assert own_answers("/books", "post") == {"Unauthorized", "TooManyRequests", *of_bodies, *behind}
    assert own_answers("/books/top", "get") == behind
    assert own_answers("/shops", "get") == {"Unauthorized", "Forbidden", *behind}
    assert own_answers("/live", "get") == always
    for response in found["components"]["responses"].values():
        assert set(response["content"]) == {"application/problem+json"}


def test_an_answer_that_the_service_describes_keeps_its_description() -> None:
    books = document({"/books": {"get": operation()}})
    books["paths"]["/books"]["get"]["responses"]["503"] = {"description": "too busy to read"}
    responses = merged(Source("books", books))["paths"]["/books"]["get"]["responses"]
    assert responses["503"] == {"description": "too busy to read"}


def test_listed_addresses_may_be_refused_everywhere() -> None:
    found = merged(text=ROUTES + '[addresses]\nallow = ["10.0.0.0/8"]\n')
    assert "403" in found["paths"]["/books/top"]["get"]["responses"]


def test_servers_of_a_service_are_not_shown() -> None:
    books = document({"/books": {"get": operation(servers=[{"url": "http://10.0.0.1:99"}])}})
    books["servers"] = [{"url": "http://10.0.0.1:98"}]
    found = merged(Source("books", books))
    assert "10.0.0.1" not in json.dumps(found)
    assert [server["url"] for server in found["servers"]] == ["/"]


def test_services_say_how_they_are_known_and_websockets_are_listed() -> None:
    found = merged(Source("books", BOOKS, "stale", "no replica of books answers"), Source("shops", None, "absent", "x"))
    assert found["x-roundhouse"]["services"] == {
        "books": {"state": "stale", "reason": "no replica of books answers"},
        "shops": {"state": "absent", "reason": "x"},
    }
    assert "/books" in found["paths"]
    assert [socket["route"] for socket in found["x-roundhouse"]["websockets"]] == ["/talk"]


def test_merging_leaves_the_sources_as_they_were() -> None:
    before = deepcopy((BOOKS, SHOPS, OWN.document))
    merged()
    assert (BOOKS, SHOPS, OWN.document) == before


def deep(levels: int) -> Any:
    node: Any = {}
    for _ in range(levels):
        node = {"x": node}
    return node


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "no OpenAPI"),
        ([], "no OpenAPI"),
        ({"openapi": "3.0.3", "paths": {}}, "no OpenAPI 3.1"),
        ({"openapi": "3.1.0", "paths": []}, "paths"),
        ({"openapi": "3.1.0", "paths": {"/x": 1}}, "paths"),
        (document({"/x": {"$ref": "#/components/pathItems/X"}}), "paths"),
        (document({"/x": {"get": {"responses": []}}}), "responses"),
        (document({"/x": {"get": operation("Missing")}}), "Missing, which it does not hold"),
        (document({"/x": {"get": operation(parameters=[{"$ref": "http://elsewhere/x"}])}}), "does not hold"),
        (document({"/x": {"get": operation()}}, title="\ud800"), "written as JSON"),
        (document({"/x": {"get": operation(x=deep(DEPTH_MAX))}}), "nested over"),
        (document({"/x": {"get": operation(x=deep(50_000))}}), "nested over"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_document_that_cannot_be_merged_is_refused_with_the_reason(found: object, reason: str) -> None:
    with pytest.raises(UnreadableDocument, match=reason):
        check_document(found)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["", "a", "#/components/schemas/A", "#/components/schemas/B", "#/components/x", "path"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["$ref", "discriminator", "mapping", "properties", "parameters", "responses", "get", "name", "in"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = ("parameters", "responses", "security", "operationId", "requestBody", "callbacks")


@given(
    item=st.dictionaries(st.sampled_from(["get", "parameters", "summary"]), values, max_size=3),
    get=st.dictionaries(st.sampled_from(KEYS), values, max_size=4),
    schemas=st.dictionaries(st.sampled_from(["A", "B"]), values, max_size=2) | values,
    info=values,
)
def test_whatever_a_service_says_is_refused_or_can_be_merged(item: Any, get: Any, schemas: Any, info: Any) -> None:
    found = {
        "openapi": "3.1.0",
        "info": info,
        "paths": {"/books": item, "/books/x": {"get": get}},
        "components": {"schemas": schemas},
    }
    try:
        books = check_document(found)
    except UnreadableDocument:
        return
    orjson.dumps(merge(config(), OWN, [Source("books", books), Source("shops", SHOPS)]))
