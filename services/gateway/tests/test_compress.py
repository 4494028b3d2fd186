"""Gzip, the head: who gets it and what the headers then say."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.config import check
from services.gateway.domain.defaults import default_config
from services.gateway.domain.encodings import accepts_gzip
from services.gateway.lane.compress import OPEN_MAX, Compression, Compressor
from services.gateway.lane.head import Headers
from services.gateway.model import Route

TABLE = check(default_config(is_production=False))
READ_ONLY = Route(path="/reports/*", service="reports", methods=("GET", "HEAD"), auth="public")
JSON = (b"content-type", b"application/json")
LONG = (b"content-length", b"5000")


def methods_of(path: str) -> tuple[str, ...]:
    return ("GET", "PUT") if path.startswith("/editable") else ("GET",)


class Answer:
    """One answer's head, put before the compression."""

    def __init__(
        self,
        *headers: tuple[bytes, bytes],
        accept: bytes = b"gzip, deflate, br",
        method: str = "GET",
        status: int = 200,
        route: Route | None = READ_ONLY,
        path: str = "/reports/1",
        asked: Headers | None = None,
        compression: Compression | None = None,
    ) -> None:
        self.headers: Headers = list(headers)
        self.compressor: Compressor | None = (compression or Compression(methods_of)).for_answer(
            accept, method, status, self.headers, route=route, path=path, asked=asked or []
        )

    @property
    def is_compressed(self) -> bool:
        return self.get("content-encoding") == b"gzip"

    def get(self, name: str) -> bytes | None:
        found = [value for key, value in self.headers if key == name.encode()]
        assert len(found) <= 1, f"{name} came {len(found)} times"
        return found[0] if found else None


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"gzip", True),
        (b"GZIP", True),
        (b"x-gzip", True),
        (b"*", True),
        (b"gzip, deflate, br, zstd", True),
        (b"br;q=1.0, gzip;q=0.8, *;q=0.1", True),
        (b"gzip;q=1", True),
        (b"gzip ; q=0.001", True),
        (b"gzip;q=1.000", True),
        (b"identity;q=0.5, gzip;q=0.5", True),
        (b"identity;q=0, gzip;q=0.1", True),
        (b"*;q=0, gzip", True),
        (b"deflate, *;q=0.2", True),
        (b"", False),
        (b"identity", False),
        (b"br", False),
        (b"gzip;q=0", False),
        (b"gzip;q=0.0", False),
        (b"gzip;q=0.000", False),
        (b"*;q=0", False),
        (b"gzip;q=0, *", False),
        (b"identity;q=1, gzip;q=0.5", False),
        (b"identity, *;q=0.9", False),
        (b"gzip, gzip;q=0", False),
        # No weights: RFC 9110, section 12.4.2.
        (b"gzip;q=1.5", False),
        (b"gzip;q=0.0001", False),
        (b"gzip;q=-1", False),
        (b"gzip;q=", False),
        (b"gzip;level=9", False),
        (b"gzip;q=nan, identity", False),
        (b"gzip" + b", br" * 100, False),
    ],
)
def test_accept_encoding_is_read_as_the_rfc_has_it(value, wanted):
    assert accepts_gzip(value) is wanted


@given(st.one_of(st.binary(max_size=400), st.text(alphabet='gzip;q=0.1, *identy"\t', max_size=60).map(str.encode)))
def test_any_accept_encoding_has_an_answer(value):
    assert accepts_gzip(value) in (True, False)


weights = st.sampled_from(["", ";q=0", ";q=0.3", ";q=0.7", ";q=1.0"])


@given(st.dictionaries(st.sampled_from(["gzip", "identity", "*", "br"]), weights), st.randoms())
def test_weights_count_whatever_their_order(found, random):
    def weight(name: str, default: float) -> float:
        text = found.get(name)
        return default if text is None else float(text[3:] or 1)

    items = [name + text for name, text in found.items()]
    random.shuffle(items)
    gzip_weight = weight("gzip", weight("*", 0.0))
    assert accepts_gzip(", ".join(items).encode()) is (gzip_weight > 0 and gzip_weight >= weight("identity", 0.0))


@pytest.mark.parametrize(
    "kind",
    [
        b"application/json",
        b"Application/JSON; charset=utf-8",
        b"application/problem+json",
        b"application/vnd.api+json",
        b"text/html; charset=utf-8",
        b"text/plain; version=0.0.4",
        b"application/javascript",
        b"image/svg+xml",
        b"application/xml",
    ],
)
def test_text_is_compressed(kind):
    answer = Answer((b"content-type", kind), LONG)
    assert answer.is_compressed
    assert answer.compressor is not None
    assert answer.get("vary") == b"Accept-Encoding"


@pytest.mark.parametrize(
    "kind",
    [
        b"image/png",
        b"application/octet-stream",
        b"application/zip",
        b"text/event-stream",
        b"text/event-stream; charset=utf-8",
        b"application/x-ndjson",
        b"application/stream+json",
        b"multipart/byteranges; boundary=text/html",
        b"",
    ],
)
def test_streams_and_what_is_no_text_are_left_alone(kind):
    answer = Answer((b"content-type", kind), (b"etag", b'"a"'))
    assert answer.compressor is None
    assert answer.headers == [(b"content-type", kind), (b"etag", b'"a"')]


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("stream", {"route": READ_ONLY.model_copy(update={"kind": "stream"})}),
        ("switched off", {"route": READ_ONLY.model_copy(update={"compress": False})}),
        ("no body", {"status": 204}),
        ("no body either", {"status": 205}),
        ("a part", {"status": 206}),
    ],
)
def test_answer_that_must_not_be_compressed_is_left_alone(why, change):
    answer = Answer(JSON, **change)
    assert answer.compressor is None
    assert answer.headers == [JSON]


@pytest.mark.parametrize(
    "header",
    [
        (b"content-encoding", b"br"),
        (b"content-encoding", b"gzip"),
        (b"cache-control", b"public, No-Transform"),
        (b"content-range", b"bytes 0-4999/10000"),
        (b"content-length", b"1023"),
    ],
)
def test_header_that_forbids_it_leaves_the_answer_alone(header):
    answer = Answer(JSON, header)
    assert answer.compressor is None
    assert answer.headers == [JSON, header]


def test_identity_is_no_encoding():
    assert Answer(JSON, (b"content-encoding", b"identity")).is_compressed


def test_answer_of_1024_bytes_is_compressed():
    assert Answer(JSON, (b"content-length", b"1024")).is_compressed


def test_answer_that_could_have_been_compressed_says_so_to_caches():
    answer = Answer(JSON, LONG, accept=b"")
    assert answer.compressor is None
    assert answer.headers == [JSON, LONG, (b"vary", b"Accept-Encoding")]


@pytest.mark.parametrize("vary", [b"*", b"Origin, accept-encoding"])
def test_vary_that_says_it_already_stays(vary):
    assert Answer(JSON, (b"vary", vary)).get("vary") == vary


def test_headers_of_the_plain_bytes_go_or_change():
    answer = Answer(
        JSON,
        LONG,
        (b"etag", b'"v1"'),
        (b"accept-ranges", b"bytes"),
        (b"content-digest", b"sha-256=:x:"),
        (b"repr-digest", b"sha-256=:x:"),
        (b"digest", b"SHA-256=x"),
        (b"content-md5", b"x"),
        (b"cache-control", b"no-store"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
    )
    assert answer.headers == [
        JSON,
        (b"etag", b'W/"v1"'),
        (b"cache-control", b"no-store"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"vary", b"Accept-Encoding"),
        (b"content-encoding", b"gzip"),
    ]


def test_weak_tag_stays_as_it_is():
    answer = Answer(JSON, (b"etag", b'W/"v1"'), path="/editable/1")
    assert answer.is_compressed
    assert answer.get("etag") == b'W/"v1"'


def test_strong_tag_of_what_can_be_edited_is_kept_and_so_are_its_bytes():
    answer = Answer(JSON, LONG, (b"etag", b'"v1"'), path="/editable/1")
    assert answer.compressor is None
    assert answer.headers == [JSON, LONG, (b"etag", b'"v1"')]


def test_what_can_be_edited_but_has_no_tag_is_compressed():
    assert Answer(JSON, LONG, path="/editable/1").is_compressed


def test_head_gets_the_headers_of_get_but_for_the_length():
    headers = [JSON, LONG, (b"etag", b'"v1"'), (b"accept-ranges", b"bytes")]
    get, head = Answer(*headers), Answer(*headers, method="HEAD")
    assert get.compressor is not None
    assert head.compressor is None
    get.compressor.whole(b"a" * 5000)
    assert head.headers == [pair for pair in get.headers if pair[0] != b"content-length"]


def test_304_has_the_tag_that_the_client_keeps():
    for asked, etag in [
        (b'W/"v1"', b'W/"v1"'),
        (b'"v0", W/"v1"', b'W/"v1"'),
        (b'"v1"', b'"v1"'),
        (b'W/"v10"', b'"v1"'),
        (b"*", b'"v1"'),
    ]:
        answer = Answer((b"etag", b'"v1"'), status=304, asked=[(b"accept", b"*/*"), (b"if-none-match", asked)])
        assert answer.compressor is None
        assert answer.get("etag") == etag, asked


def test_the_gateways_own_answers_are_compressed():
    assert Answer((b"content-type", b"text/plain"), LONG, route=None).is_compressed


@pytest.mark.parametrize("path", ["/auth/token", "/auth/refresh", "/auth/ticket"])
def test_what_hands_out_tokens_is_never_compressed(path):
    route = TABLE.resolve("POST", path)
    assert route is not None
    assert Answer(JSON, LONG, route=route, path=path, method="POST").compressor is None


def test_only_so_many_bodies_are_compressed_in_parts_at_one_time():
    compression = Compression(methods_of)
    opened = [Answer(JSON, LONG, compression=compression) for _ in range(OPEN_MAX)]
    one_more = Answer(JSON, LONG, compression=compression)
    assert one_more.compressor is None
    assert one_more.headers == [JSON, LONG, (b"vary", b"Accept-Encoding")]
    finished, abandoned = opened.pop(), opened.pop()
    assert finished.compressor is not None
    list(finished.compressor.parts(b"", is_last=True))
    del abandoned
    gc.collect()
    for _ in range(2):
        opened.append(Answer(JSON, compression=compression))
        assert opened[-1].is_compressed
    assert not Answer(JSON, compression=compression).is_compressed
