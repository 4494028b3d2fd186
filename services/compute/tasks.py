"""The CPU tasks: pure functions that a child process imports, so this module imports nothing of the service."""

from math import isqrt


def count_primes(below: int) -> int:
    """Return how many primes are smaller than `below`, by a sieve over the odd numbers (`below` / 2 bytes of memory)."""
    if below <= 2:
        return 0
    # Index i stands for 2i + 1; index 0 stands for 1, which is no prime, and its place counts the 2 instead.
    size = below // 2
    sieve = bytearray(b"\x01") * size
    for i in range(1, (isqrt(below - 1) + 1) // 2):
        if sieve[i]:
            prime = 2 * i + 1
            first = prime * prime // 2
            sieve[first::prime] = bytes((size - 1 - first) // prime + 1)
    return sieve.count(1)
