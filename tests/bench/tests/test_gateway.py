"""The scenario `gateway`: its rows, their order in the rounds, its ratios, and what our gateway is told."""

import threading

import pytest

from services.gateway.settings import GatewaySettings
from shared.settings import load
from tests.bench import gateway, ours, throughput
from tests.bench.__main__ import main
from tests.bench.errors import BenchError
from tests.bench.gateways import Variant
from tests.bench.windows import Log, Window


def window(variant: str, cpu_us: float, request: str = "get", number: int = 0) -> Window:
    return Window(
        variant, number, request, 64, 100, 1.0, 100.0, cpu_us, 1.0, 1.0, 2.0, 30.0, 20.0, 0, 0, store_round_trips=2
    )


NAMES = [variant.name for variant in gateway.VARIANTS]


def rows(*names: str) -> list[Variant]:
    return [variant for variant in gateway.VARIANTS if variant.name in names]


def test_an_option_names_rows_in_the_order_of_the_table_and_nothing_means_all():
    assert gateway.named("--only", "ours-all, envoy,nginx", NAMES) == ["nginx", "envoy", "ours-all"]
    assert gateway.named("--only", "", NAMES) == NAMES


def test_an_unknown_row_is_refused_with_the_known_ones():
    with pytest.raises(BenchError, match=r"kong is not known.*envoy"):
        gateway.named("--only", "envoy,kong", NAMES)


def test_a_whole_run_takes_ten_minutes_at_most():
    assert gateway.estimate_s(list(gateway.PARTS), gateway.VARIANTS, rounds=gateway.ROUNDS_MIN, window_s=2) <= 600


def test_in_as_many_rounds_as_rows_each_row_is_at_another_place():
    variants = gateway.VARIANTS[:5]
    rounds = [throughput.order(variants, number) for number in range(10)]
    assert all(sorted(v.name for v in order) == sorted(v.name for v in variants) for order in rounds)
    assert len({order[0].name for order in rounds}) == 5
    assert [v.name for v in rounds[0]] != [v.name for v in rounds[5]]


def test_ratios_are_of_medians_by_peer_and_request():
    variants = rows("ours-all", "ours-bare", "fastapi-httpx", "envoy")
    found = throughput.Rounds(
        windows=[
            *(window("ours-all", cpu) for cpu in (100.0, 110.0, 500.0)),
            *(window("ours-bare", cpu) for cpu in (55.0, 50.0, 60.0)),
            *(window("envoy", cpu) for cpu in (100.0, 90.0, 110.0)),
            *(window("fastapi-httpx", cpu) for cpu in (2200.0, 2000.0, 9000.0)),
            window("ours-all", 120.0, "post"),
            window("envoy", 80.0, "post"),
        ]
    )
    assert throughput.ratios(found, variants, gateway.PREFIXES) == pytest.approx(
        {
            "cpu_vs_envoy": 1.1,
            "post_cpu_vs_envoy": 1.5,
            "cpu_vs_fastapi_httpx": 0.05,
            "bare_cpu_vs_envoy": 0.55,
            "bare_cpu_vs_fastapi_httpx": 0.025,
            "store_round_trips_per_request": 0.02,
        }
    )


def test_every_variant_of_ours_has_a_prefix_of_its_own():
    names = [variant.name for variant in gateway.VARIANTS if variant.is_ours]
    assert sorted(gateway.PREFIXES) == sorted(names)
    assert len(set(gateway.PREFIXES.values())) == len(names)


@pytest.mark.parametrize("shape", [ours.Shape(), ours.Shape(is_all_on=False), ours.Shape(routes=100)])
def test_the_gateway_takes_what_it_is_told(shape, monkeypatch):
    env = ours.environment(shape, port=1, upstream_port=2, redis_url="memory://")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    config = load(GatewaySettings, env).read_config(env["RH_GATEWAY_CONFIG"])
    measured = next(route for route in config.routes if route.path == "/v1/*")
    assert measured.auth == ("signed_in" if shape.is_all_on else "public")
    assert measured.limits == (("each-user", "each-address") if shape.is_all_on else ())
    assert len(config.routes) == shape.routes + 1


@pytest.mark.slow  # waits until the file is quiet
def test_lines_are_counted_from_the_start_of_a_window_and_only_those_about_requests(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b'{"event":"request"}\n' * 3)
    log = Log(file, ours.REQUEST_MARK)
    with file.open("ab") as content:
        content.write(b'{"event":"started"}\n{"event":"request","a":1}\n{"event":"request","a":2}\n')
    assert log.lines(at_least=2) == 2


@pytest.mark.slow  # waits until the file is quiet
def test_a_line_that_was_still_in_a_buffer_does_not_count(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b"")

    def write() -> None:
        with file.open("ab") as content:
            content.write(b'{"event":"request"}\n')

    late = threading.Timer(0.1, write)
    late.start()
    log = Log(file, ours.REQUEST_MARK)
    late.join()
    assert log.lines(at_least=0) == 0


def test_a_row_that_logs_nothing_has_no_lines():
    assert Log(None, b"").lines(at_least=5) == 0


@pytest.mark.parametrize("argv", [["kong"], [], ["table", "kong"]])
def test_an_unknown_name_lists_the_known_ones(argv, capsys):
    assert main(argv) == 2
    assert "gateway" in capsys.readouterr().err
