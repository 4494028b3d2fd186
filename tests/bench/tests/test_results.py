"""The result files: their schema, the arithmetic of their ratios, and those that are kept in the repository."""

import importlib
from pathlib import Path

import pytest

from tests.bench import results
from tests.bench.errors import BenchError

GOOD = {"name": "x", "commit": "abc", "date": "2026-11-25", "machine": {}, "raw": {}, "ratios": {"cpu_vs_envoy": 1.25}}


def test_a_ratio_is_that_of_the_medians_not_of_the_means():
    assert results.ratio_of_medians([10, 20, 900], [40, 41, 1]) == 0.5


@pytest.mark.parametrize(("ours", "theirs"), [([], [1.0]), ([1.0], []), ([1.0], [0.0])])
def test_a_ratio_of_nothing_is_refused(ours, theirs):
    with pytest.raises(BenchError):
        results.ratio_of_medians(ours, theirs)


def test_an_assembled_result_says_what_was_measured_where_and_when():
    found = results.assemble("x", {"cpu": "c"}, {"medians": {}}, {"b": 2 / 3, "a": 120})
    assert list(found) == list(results.FIELDS)
    assert found["ratios"] == {"a": 120, "b": 0.6667}
    assert found["commit"]


@pytest.mark.parametrize(
    "wrong",
    [
        {**GOOD, "ratios": {"a": "1"}},
        {**GOOD, "ratios": {"a": float("nan")}},
        {**GOOD, "ratios": {"a": True}},
        {**GOOD, "ratios": {"a": -1.0}},
        {**GOOD, "machine": "fast"},
        {**GOOD, "more": 1},
        {name: value for name, value in GOOD.items() if name != "commit"},
    ],
)
def test_a_result_of_another_form_is_refused(wrong):
    with pytest.raises(BenchError):
        results.check(wrong)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = tmp_path / "deep" / "x.json"
    results.save(GOOD, path)
    assert results.load(path) == GOOD
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_a_missing_result_says_how_to_make_it(tmp_path):
    with pytest.raises(BenchError, match="make bench NAME=gateway"):
        results.load(tmp_path / "gateway.json")


@pytest.mark.parametrize("path", sorted(results.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_kept_result_is_of_the_schema(path):
    assert results.load(path)["name"] == path.stem


def test_four_digits_are_kept():
    assert [results.rounded(value) for value in (0.0123456, 123456.0, 1.0)] == [0.01235, 123500.0, 1.0]


def test_a_table_is_markdown():
    assert results.markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("path", sorted(results.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_services_readme_shows_its_kept_result(path):
    """After a new whole run, put what `python -m tests.bench table NAME` prints there."""
    scenario = importlib.import_module(f"tests.bench.{path.stem}")
    readme = (Path(__file__).parents[3] / "services" / path.stem / "README.md").read_text()
    assert scenario.table(results.load(path)).strip() in readme
