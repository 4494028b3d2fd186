"""Whose request it is: forwarding headers are believed from trusted proxies only, and counted from the right."""

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.addresses import HOPS_MAX, AddressBook, parse_address
from services.gateway.model import Addresses

PROXY = "10.0.0.1"


def book(**lists: tuple[str, ...]) -> AddressBook:
    return AddressBook(Addresses.model_validate(lists))


BEHIND = book(trusted_proxies=("10.0.0.0/8", "fd00::/8"))


def test_header_of_a_stranger_is_not_believed() -> None:
    client = BEHIND.find("192.0.2.9", b"198.51.100.1")
    assert (client.address, client.is_relayed) == ("192.0.2.9", False)


def test_header_is_not_believed_where_no_proxy_is_trusted() -> None:
    assert book().find(PROXY, b"198.51.100.1").address == PROXY


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        (b"198.51.100.1", "198.51.100.1"),
        (b"  198.51.100.1\t", "198.51.100.1"),
        (b"203.0.113.66, 198.51.100.1", "198.51.100.1"),
        (b"203.0.113.66, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        (b"127.0.0.1, 198.51.100.1,10.3.0.2,10.0.0.2", "198.51.100.1"),
        (b"10.0.0.3, 10.0.0.2", "10.0.0.3"),
        (b"198.51.100.1:5678", "198.51.100.1"),
        (b"2001:db8::5", "2001:db8::5"),
        (b"[2001:db8::5]", "2001:db8::5"),
        (b"[2001:db8::5]:443", "2001:db8::5"),
        (b'"[2001:DB8:0::5]:443"', "2001:db8::5"),
        (b"fe80::1%eth0", "fe80::1"),
        (b"::ffff:198.51.100.1", "198.51.100.1"),
        (b"203.0.113.66, ::ffff:10.0.0.2", "203.0.113.66"),
        (b"203.0.113.66, fd00::7", "203.0.113.66"),
        (b"203.0.113.66, unknown", PROXY),
        (b"203.0.113.66, _hidden, 10.0.0.2", "10.0.0.2"),
        (b"203.0.113.66,", PROXY),
        (b",,", PROXY),
        (b"\xff\xfe", PROXY),
        (b"198.51.100.1 203.0.113.66", PROXY),
        (b"0198.051.0100.01", PROXY),
    ],
)
def test_chain_is_read_from_the_right_past_trusted_proxies(chain: bytes, address: str) -> None:
    client = BEHIND.find(PROXY, chain)
    assert (client.address, client.is_relayed) == (address, True)


def test_long_chain_is_followed_so_far_and_no_further() -> None:
    chain = b",".join([b"198.51.100.1"] + [b"10.0.0.%d" % number for number in range(100)])
    assert BEHIND.find(PROXY, chain).address == f"10.0.0.{100 - HOPS_MAX}"


@given(st.binary(max_size=60))
def test_any_chain_gives_an_address_and_no_error(chain: bytes) -> None:
    assert parse_address(BEHIND.find(PROXY, chain).address) is not None


@given(st.ip_addresses(), st.lists(st.ip_addresses(v=4, network="10.0.0.0/8"), max_size=5), st.binary(max_size=30))
def test_no_client_can_choose_the_address_it_is_seen_by(
    client: ipaddress.IPv4Address, proxies: list[ipaddress.IPv4Address], forged: bytes
) -> None:
    seen = parse_address(str(client))
    if seen is None or seen in ipaddress.ip_network("10.0.0.0/8") or seen in ipaddress.ip_network("fd00::/8"):
        return
    chain = b", ".join([forged, *(str(hop).encode() for hop in (client, *proxies))])
    assert BEHIND.find(PROXY, chain).address == str(seen)


def test_client_without_a_readable_address_is_nobody() -> None:
    client = book(exempt=("0.0.0.0/0", "::/0")).find("")
    assert (client.address, client.key, client.is_exempt, client.is_allowed) == ("", "", False, True)
    assert not book(allow=("0.0.0.0/0",)).find("").is_allowed


def test_everybody_is_allowed_where_nobody_is_named() -> None:
    assert book().find("192.0.2.9").is_allowed


def test_only_the_named_are_allowed_and_exempt() -> None:
    lists = book(allow=("192.0.2.0/24", "2001:db8::/32"), exempt=("192.0.2.7",))
    assert [lists.find(peer).is_allowed for peer in ("192.0.2.1", "192.0.3.1", "2001:db8::1", "2001:db9::1")] == [
        True,
        False,
        True,
        False,
    ]
    assert [lists.find(peer).is_exempt for peer in ("192.0.2.7", "192.0.2.8", "::ffff:192.0.2.7")] == [
        True,
        False,
        True,
    ]


def test_network_of_mapped_addresses_is_the_ipv4_network() -> None:
    assert book(exempt=("::ffff:10.0.0.0/104",)).find("10.1.2.3").is_exempt


def test_lists_are_about_the_client_and_not_about_the_proxy() -> None:
    lists = book(allow=("198.51.100.0/24",), exempt=(PROXY,), trusted_proxies=(PROXY,))
    client = lists.find(PROXY, b"198.51.100.1")
    assert (client.is_allowed, client.is_exempt) == (True, False)
    assert not lists.find(PROXY).is_allowed


def test_clients_of_one_ipv6_network_share_a_key() -> None:
    keys = {BEHIND.find(f"2001:db8:1:2::{number:x}").key for number in (1, 2, 0xFFFF)}
    assert keys == {"2001:db8:1:2::/64"}
    assert BEHIND.find("2001:db8:1:3::1").key not in keys
    assert BEHIND.find("192.0.2.9").key == "192.0.2.9"


def test_what_is_remembered_is_bounded_and_chains_push_no_peer_out() -> None:
    lists = AddressBook(Addresses(trusted_proxies=(PROXY,)), remembered_max=10)
    lists.find("192.0.2.9")
    for _ in range(1000):
        lists.find(PROXY, str(ipaddress.IPv4Address(random.getrandbits(32))).encode())
        lists.find("198.51.100.1", b"%d" % random.getrandbits(32))
    assert lists._of_peer.cache_info().currsize == 3
    assert lists._of_chain.cache_info().currsize == 10
