"""Which address a name may be reached at: the one that was checked is the one that is dialled."""

import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import Callable
from typing import Any

import httpx2  # noqa: TID253  this module is imported inside functions

Resolve = Callable[[str], list[str]]
ELSEWHERE = "redirected"  # in a request's extensions: whether another server sent us here


def resolve(host: str) -> list[str]:
    """The addresses of a name, each once. Raises httpx2.ConnectError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx2.ConnectError(f"{host}: {getattr(error, 'strerror', None) or error}") from None
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def literal(host: str) -> bool:
    """Whether a host is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_private(address: str) -> bool:
    """Whether an address is not one of the public internet: this machine, a local network, a cloud's metadata.

    An IPv6 address that stands for an IPv4 one is judged as that.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return not found.is_global or found.is_multicast


class Refused(Exception):
    """A private address that nobody named."""


def proxy_for(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for a URL (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY; not for NO_PROXY)."""
    if host == "localhost" or (literal(host) and ipaddress.ip_address(host).is_loopback):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(scheme) or proxies.get("all")
    return None if named is None or urllib.request.proxy_bypass(host) else named


class Pinned(httpx2.BaseTransport):
    """One connection to one host, by the addresses that were checked.

    What the user names may be private; where another server redirects to may not, nor may a name that was public
    before. A proxy resolves names itself, so that there only addresses are checked.
    """

    def __init__(self, scheme: str, host: str, context: ssl.SSLContext, resolve: Resolve = resolve) -> None:
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
        self._proxy = proxy_for(scheme, host)
        self._inner = httpx2.HTTPTransport(verify=context, trust_env=False, limits=limits, proxy=self._proxy)
        self._resolve = resolve
        self._was_public = False

    def handle_request(self, request: Any) -> Any:
        """Send a request to the host that its URL names. Raises Refused."""
        host, elsewhere = request.url.host, request.extensions.get(ELSEWHERE, False)
        if self._proxy:
            if elsewhere and (host == "localhost" or (literal(host) and is_private(host))):
                raise Refused(host)
            return self._inner.handle_request(request)
        addresses = [host] if literal(host) else self._resolve(host)
        private = next((each for each in addresses if is_private(each)), None)
        if private and (elsewhere or self._was_public):
            raise Refused(host if host == private else f"{host} ({private})")
        self._was_public = self._was_public or not private
        for left, address in enumerate(addresses, 1 - len(addresses)):
            pinned = httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,  # Host is still the name
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return self._inner.handle_request(pinned)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if left == 0:
                    raise
        raise httpx2.ConnectError(f"{host} has no address")

    def close(self) -> None:
        self._inner.close()
