"""What is told to wrk and what is read from it."""

import pytest

from tests.bench.errors import BenchError
from tests.bench.wrk import Request, parse, script

PRINTED = """Running 2s test @ http://127.0.0.1:1
  1 threads and 64 connections
{"not":"this one"}
Requests/sec:  35626.11
Transfer/sec:     12.1MB

{"requests":71000,"duration_us":2000500,"bytes":9,"p50_us":1480,"p99_us":2940,"max_us":9,"connect":0,"read":0,"write":0,"status":%d,"timeout":0}
"""


def test_the_last_line_of_figures_counts():
    found = parse(PRINTED % 0)
    assert (found.requests, found.duration_s, found.p50_ms, found.p99_ms) == (71000, 2.0005, 1.48, 2.94)
    assert found.per_s == pytest.approx(35491.1, abs=0.1)
    assert found.errors == {}


def test_errors_are_kept_by_kind():
    assert parse(PRINTED % 7).errors == {"status": 7}


def test_output_without_figures_is_an_error():
    with pytest.raises(BenchError, match="unable to connect"):
        parse("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_script_holds_method_headers_and_body_quoted():
    text = script(Request("POST", "/", (("Authorization", 'Bearer a"b\\c'),), b'{"a":1}'))
    assert 'wrk.method = "POST"' in text
    assert 'wrk.headers["Authorization"] = "Bearer a\\"b\\\\c"' in text
    assert 'wrk.body = "{\\"a\\":1}"' in text


def test_a_get_has_no_body():
    assert "wrk.body" not in script(Request("GET", "/"))


@pytest.mark.parametrize("value", ["a\nb", "ä", "\x00"])
def test_what_could_break_the_script_is_refused(value):
    with pytest.raises(ValueError, match="ASCII"):
        script(Request("GET", "/", (("X", value),)))
