"""Which address a name may be reached at: the one that was checked is the one that is dialled."""

import ipaddress
import ssl
import urllib.request
from collections.abc import Callable
from typing import Any

import httpx2  # noqa: TID253  this module is imported inside functions

from vtools import network_addresses
from vtools.network_addresses import is_private, literal

Resolve = Callable[[str], list[str]]
ELSEWHERE = "redirected"  # in a request's extensions: whether another server sent us here


def resolve(host: str) -> list[str]:
    """The addresses of a name, each once. Raises httpx2.ConnectError."""
    try:
        return network_addresses.resolve(host)
    except (OSError, UnicodeError) as error:
        raise httpx2.ConnectError(f"{host}: {getattr(error, 'strerror', None) or error}") from None


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
