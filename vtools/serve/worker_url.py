"""Where a worker may be: its URL is read strictly, resolved once, and checked; then it is dialled by address."""

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from vtools import network_addresses
from vtools.network_addresses import Network
from vtools.process import UsageFailure

# Where clouds answer for themselves: EC2 and most others, EC2 by IPv6, Azure's wire server, Alibaba. Link-local is
# refused as a whole.
METADATA = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "168.63.129.16", "100.100.100.200"))
)
SECONDS = 5.0  # for a name to be resolved


class BadUrl(Exception):
    """A URL that is not dialled, and why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is: an address that was checked."""

    address: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Policy:
    """Which addresses may be dialled: public ones, and those of `networks`; on a `loopback` edge this machine's."""

    def __init__(self, networks: Sequence[Network], loopback: bool) -> None:
        self._networks, self._loopback = networks, loopback

    def check(self, address: str) -> None:
        """Raise BadUrl for an address that must not be dialled."""
        found = network_addresses.meant(address)
        if found in METADATA or found.is_link_local or found.is_multicast or found.is_unspecified:
            raise BadUrl(f"{address} is never an address of a worker (metadata, link-local, multicast or unspecified)")
        if any(found in network for network in self._networks):
            return
        if found.is_loopback:
            if not self._loopback:
                raise BadUrl(f"{address} is this machine, not the worker's: start the worker with --host ADDRESS")
        elif network_addresses.is_private(address):
            raise BadUrl(f"{address} is private: start the edge with --allow-net {found}")

    async def place(self, url: str, peer: str) -> Place:
        """Where the worker with this URL is; `peer` is the address that its lease came from. Raises BadUrl."""
        tls, host, port = parse(url)
        if network_addresses.literal(host):
            unspecified = ipaddress.ip_address(host).is_unspecified
            addresses = [peer if unspecified else host]  # a worker that listens on all of its addresses
        else:
            try:
                async with asyncio.timeout(SECONDS):
                    addresses = await asyncio.to_thread(network_addresses.resolve, host)
            except (OSError, UnicodeError) as error:
                reason = "it takes too long" if isinstance(error, TimeoutError) else error
                raise BadUrl(f"{host} cannot be resolved ({reason})") from None
        for address in addresses:
            self.check(address)
        return Place(str(network_addresses.meant(addresses[0])), port, tls)


def parse(url: str) -> tuple[bool, str, int]:
    """Whether a worker's URL asks for TLS, its host and its port. Raises BadUrl."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadUrl(f"{url!r} is not a URL ({error})") from None
    if parts.scheme not in ("http", "https"):
        raise BadUrl(f"{url!r} is neither http nor https")
    if parts.username is not None or parts.password is not None:
        raise BadUrl("a worker's URL must not have a user name or password")
    if not host or not port or "%" in host:
        raise BadUrl(f"{url!r} lacks a host or a port")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise BadUrl(f"{url!r} has more than a host and a port")
    return parts.scheme == "https", host, port


def networks(given: Sequence[str]) -> list[Network]:
    """The networks of --allow-net. Raises UsageFailure."""
    try:
        return [ipaddress.ip_network(one) for one in given]
    except ValueError as error:
        raise UsageFailure(f"--allow-net: {error}; write it as in 10.0.0.0/8") from None
