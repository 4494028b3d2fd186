"""One picture of several workers'."""

from services.gateway.domain.overview import merge


def test_one_workers_view_stays_as_it_is():
    assert merge({2: {"a": [1, "x", None]}}) == {"a": [1, "x", None]}


def test_numbers_are_added_up():
    assert merge({1: {"n": 1, "f": 0.5}, 2: {"n": 2, "f": 1.0}}) == {"n": 3, "f": 1.5}


def test_what_all_say_alike_is_said_once():
    assert merge({1: {"state": "open", "held": True}, 2: {"state": "open", "held": True}}) == {
        "state": "open",
        "held": True,
    }


def test_what_they_say_otherwise_is_said_by_worker():
    views = {1: {"state": "open", "held": True}, 3: {"state": "closed", "held": False}}
    assert merge(views) == {
        "state": {"by_worker": {"1": "open", "3": "closed"}},
        "held": {"by_worker": {"1": True, "3": False}},
    }


def test_replicas_are_told_apart_by_their_address():
    one = [{"address": "a", "in_flight": 1}, {"address": "b", "in_flight": 2}]
    other = [{"address": "b", "in_flight": 3}, {"address": "c", "in_flight": 4}]
    assert merge({1: one, 2: other}) == [
        {"address": "a", "in_flight": 1},
        {"address": "b", "in_flight": 5},
        {"address": "c", "in_flight": 4},
    ]


def test_lists_without_names_are_joined():
    requests = [{"request_id": "x", "service": "users", "age_s": 1.0}]
    assert merge({1: requests, 2: requests}) == [*requests, *requests]


def test_a_service_that_one_worker_alone_knows_is_shown():
    assert merge({1: {"users": {"n": 1}}, 2: {}}) == {"users": {"n": 1}}
