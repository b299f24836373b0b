# ruff: noqa: TID253  imported by the command alone, once it is about to serve
"""Who may ask: the API key, the Host header where there is no key, and the web pages of other origins."""

import contextlib
import hmac
import ipaddress
import re
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

from vtools.process import UsageFailure
from vtools.serve.errors import ApiError

KEY = "VTOOLS_API_KEY"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")


class Admission:
    """Lets in who has the key or, without a key, who addresses this machine by a name that is always its own."""

    def __init__(self, key: bytes | None, host: str) -> None:
        """`host` is the address or name that was given on the command line."""
        self._host = host.lower()
        self._forms: set[bytes] = set()
        if key is not None:
            self._forms.add(key)
            with contextlib.suppress(UnicodeError):
                self._forms.add(key.decode().encode("latin-1"))  # as browsers and Python's http.client send it

    def check(self, request: Request) -> None:
        """Raise ApiError(401) for a wrong key, ApiError(403) for a foreign host."""
        if not self._forms:
            host = request.headers.get("host", "")
            if not self._is_ours(host):
                # Without a key, a web page whose host name resolves to this machine must not get in.
                message = f"this server answers to localhost only; start it with {KEY} set, or with --host"
                raise ApiError(403, message, code="forbidden_host")
            return
        scheme, _, given = request.headers.get("authorization", "").encode("latin-1").partition(b" ")
        given = given.strip(b" \t")
        known = [hmac.compare_digest(given, form) for form in self._forms]
        if scheme.lower() != b"bearer" or not any(known):
            message = f"the API key is missing or wrong: check it against {KEY}; send Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def _is_ours(self, header: str) -> bool:
        name = re.sub(r":\d*$", "", header.strip().lower())
        if name in ("localhost", self._host):
            return True
        try:
            return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
        except ValueError:
            return name == f"[{self._host}]"


def key(environment: Any) -> bytes | None:
    """The API key in an environment (`os.environb`), without the line end of the file that it came from."""
    return environment.get(KEY.encode(), b"").strip() or None


def check_origins(given: list[str], key: bytes | None) -> None:
    """Raise UsageFailure for what is no origin.

    `*`, every origin, needs a key: without one, any page that a user of this machine visits could ask.
    """
    for origin in given:
        if origin == "*" and key is None:
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
