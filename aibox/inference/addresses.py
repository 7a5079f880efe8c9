"""What an address means, in whatever notation: the operator's own network, the public internet, or neither.

The standard library calls some addresses global that lead inside (NAT64, 6to4, Teredo): they are unwrapped first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

from aibox.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_INSIDE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
        "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip
# Routable by the registries' tables, and yet never a public service: cloud metadata, carriers, benchmarks, relays.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15",
        "224.0.0.0/4", "240.0.0.0/4", "ff00::/8", "fec0::/10", "100::/64",
    )
)  # fmt: skip
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_INSIDE_SUFFIXES = (".local", ".internal", ".lan", ".home.arpa", ".svc", ".cluster.local")
# A name must begin with a letter: resolvers read `134744072` and `0x08080808` as addresses.
_NAME = re.compile(r"[a-z]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]*[a-z0-9])?)*")


def is_inside(host: str) -> bool:
    """Whether a host name or address literal can only be one of the operator's own network."""
    host = host.lower().rstrip(".")
    address = literal(host)
    if address is None:
        return _NAME.fullmatch(host) is not None and ("." not in host or host.endswith(_INSIDE_SUFFIXES))
    return is_inside_address(address)


def literal(host: str) -> Address | None:
    """The address that a host is written as, None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def is_inside_address(address: Address) -> bool:
    """Loopback, link-local and private, also where IPv6 only wraps such an IPv4 address as a mapped one."""
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in _INSIDE)


def is_public_address(address: Address) -> bool:
    """Whether only a host of the public internet can be behind it, by every reading of the address."""
    return all(
        reading.is_global and not any(reading in network for network in _NOT_PUBLIC) for reading in _readings(address)
    )


def in_networks(networks: Iterable[str]) -> Callable[[Address], bool]:
    """A rule that admits addresses of these networks only. Raises ConfigError for what is no network."""
    try:
        parsed: list[Network] = [ipaddress.ip_network(network) for network in networks]
    except ValueError as error:
        raise ConfigError(f"not a network: {error}", hint="write 10.0.0.0/8 or fd00::/8") from None
    return lambda address: any((getattr(address, "ipv4_mapped", None) or address) in network for network in parsed)


def _readings(address: Address) -> Iterable[Address]:
    """The address itself, or the ones that a translator or a tunnel would send its packets to."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    yield address
    if any(address in network for network in _NAT64):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        # A prefix of the local network's own choice (RFC 8215) says nothing about what is behind it.
        if address in _NAT64[1]:
            yield ipaddress.IPv4Address("127.0.0.1")
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
