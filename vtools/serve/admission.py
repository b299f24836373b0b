# ruff: noqa: TID253  imported by the command alone, once it is about to serve
"""Who may ask: the API key, the Host header where there is no key, and the web pages of other origins."""

import ipaddress
import re

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

from vtools.process import UsageFailure
from vtools.serve.errors import ApiError
from vtools.serve.keys import KEY, NOBODY, Key, Keys

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")


class Admission:
    """Lets in who has a key or, without keys, who addresses this machine by a name that is always its own."""

    def __init__(self, keys: Keys, host: str) -> None:
        """`host` is the address or name that was given on the command line."""
        self._keys, self._host = keys, host

    def check(self, request: Request) -> Key:
        """The key of a request. Raises ApiError(401) for a wrong one, ApiError(403) for a foreign host."""
        if not self._keys:
            if not is_here(request.headers.get("host", ""), self._host):
                # Without a key, a web page whose host name resolves to this machine must not get in.
                message = f"this server answers to localhost only; start it with {KEY} set, or with --host"
                raise ApiError(403, message, code="forbidden_host")
            return NOBODY
        scheme, _, given = request.headers.get("authorization", "").encode("latin-1").partition(b" ")
        key = self._keys.find(given.strip(b" \t"))
        if scheme.lower() != b"bearer" or key is None:
            message = f"the API key is missing or wrong: check it against {KEY}; send Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return key


def is_here(header: str, host: str) -> bool:
    """Whether a Host header names this machine, or what the server was told to listen on."""
    host, name = host.lower(), re.sub(r":\d*$", "", header.strip().lower())
    if name in ("localhost", host):
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return name == f"[{host}]"


def check_origins(given: list[str], keyed: bool) -> None:
    """Raise UsageFailure for what is no origin.

    `*`, every origin, needs a key: without one, any page that a user of this machine visits could ask.
    """
    for origin in given:
        if origin == "*" and not keyed:
            raise UsageFailure(f"--allow-origin *: set {KEY} in the environment first, or name the origins")
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UsageFailure(f"--allow-origin {origin}: not an origin; write it as in http://localhost:3000")


def middleware(origins: list[str]) -> list[Middleware]:
    """What lets the web pages of these origins use the server."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client sends several of its own
            expose_headers=["retry-after"],
            allow_private_network=True,
        )
    ]
