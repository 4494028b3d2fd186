"""The CPU tasks against the plain definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compute.tasks import count_primes


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def test_every_small_bound_agrees_with_the_definition() -> None:
    count = 0
    for below in range(1500):
        assert count_primes(below) == count, below
        count += is_prime(below)


@given(st.integers(1500, 30_000))
def test_one_more_number_adds_one_exactly_when_it_is_prime(below: int) -> None:
    assert count_primes(below + 1) - count_primes(below) == is_prime(below)


@pytest.mark.parametrize(("below", "primes"), [(20_000, 2262), (1_000_000, 78_498), (5_000_000, 348_513)])
def test_known_counts(below: int, primes: int) -> None:
    assert count_primes(below) == primes
