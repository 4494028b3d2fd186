"""Client addresses: who is really asking, past the proxies that may say so, and what the lists of addresses mean for it."""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from services.gateway.model import Addresses

REMEMBERED_MAX = 4096
"""Peers, and chains that trusted proxies sent, whose meaning is remembered; the least recently used makes room."""

HOPS_MAX = 16
"""Proxies in a row that are followed; of a longer chain the last one followed counts as the client."""

IPV6_SITE_BITS = 64

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: `address` in its shortest form, empty where the socket has none.

    `key` is what limits by address count: an IPv6 client is its /64, the smallest network that a subscriber gets (RFC 6177), of
    which it may take any of 2**64 addresses for each request. `is_relayed` says that the peer is a trusted proxy: what it says of
    the request's origin may be passed on and added to; of anybody else it is replaced.
    """

    address: str
    key: str
    is_allowed: bool
    is_exempt: bool
    is_relayed: bool


class AddressBook:
    """What a configuration says of addresses, looked up with no parsing for those seen lately."""

    def __init__(self, addresses: Addresses, *, remembered_max: int = REMEMBERED_MAX) -> None:
        self._allow = _networks(addresses.allow)
        self._exempt = _networks(addresses.exempt)
        self._trusted = _networks(addresses.trusted_proxies)
        self._of_peer = lru_cache(remembered_max)(self._read_peer)
        # By itself: chains come from outside, and must not push the peers out.
        self._of_chain = lru_cache(remembered_max)(self._read_chain)

    def find(self, peer: str, forwarded_for: bytes = b"") -> Client:
        """Return who asks.

        `peer` is the socket's other end; `forwarded_for` the values of X-Forwarded-For, joined by commas in the order in which they
        came, and only believed from a trusted proxy. RFC 7239 `Forwarded` is not read: where two headers say who asks, a client
        writes the one that the proxy does not know.
        """
        client = self._of_peer(peer)
        return self._of_chain(peer, forwarded_for) if forwarded_for and client.is_relayed else client

    def _read_peer(self, peer: str) -> Client:
        ip = parse_address(peer)
        return self._client(ip, is_relayed=ip is not None and _is_in(ip, self._trusted))

    def _read_chain(self, peer: str, forwarded_for: bytes) -> Client:
        """Go from the peer outwards, past each proxy that is trusted, to the first address that is not.

        Each proxy adds the address it was called from at the right end; what stands left of an untrusted one is hearsay.
        """
        client = parse_address(peer)
        for part in reversed(forwarded_for.rsplit(b",", HOPS_MAX)[-HOPS_MAX:]):
            hop = parse_address(part.decode("latin-1"))
            if hop is None:
                # Not an address (`unknown`, a name): the proxy that said so is the last one known.
                break
            client = hop
            if not _is_in(hop, self._trusted):
                break
        return self._client(client, is_relayed=True)

    def _client(self, ip: _Ip | None, *, is_relayed: bool) -> Client:
        return Client(
            address="" if ip is None else str(ip),
            key="" if ip is None else _key(ip),
            is_allowed=not self._allow or (ip is not None and _is_in(ip, self._allow)),
            is_exempt=ip is not None and _is_in(ip, self._exempt),
            is_relayed=is_relayed,
        )


def parse_address(text: str) -> _Ip | None:
    """Read an address as proxies write it, with or without port, brackets, quotes and zone; None where it is none.

    An IPv4 address inside an IPv6 one (`::ffff:192.0.2.1`) is the IPv4 address: a socket for both families shows it so, and no rule
    for the one may be missed by the other.
    """
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


def _key(ip: _Ip) -> str:
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ipaddress.IPv6Network((ip, IPV6_SITE_BITS), strict=False))


def _networks(texts: tuple[str, ...]) -> tuple[_Network, ...]:
    return tuple(_unmapped(ipaddress.ip_network(text)) for text in texts)


def _unmapped(network: _Network) -> _Network:
    """Return the IPv4 network that an IPv6 one of mapped addresses means, any other as it is: addresses are compared so too."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    return (
        network if mapped is None or network.prefixlen < 96 else ipaddress.ip_network((mapped, network.prefixlen - 96))
    )


def _is_in(ip: _Ip, networks: tuple[_Network, ...]) -> bool:
    return any(ip in network for network in networks)
