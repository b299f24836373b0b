"""Signatures by the join token, which edges and workers share and which is never sent: HMAC with SHA-256."""

import hashlib
import hmac
import os
import time
from collections.abc import Mapping

TOKEN = "VTOOLS_JOIN_TOKEN"
LEASE, STATUS, DRAIN = "/fleet/lease", "/fleet/status", "/fleet/drain"  # the paths of signed requests
TIME, SIGNATURE = "vtools-time", "vtools-signature"  # headers of a signed request
AGE = 60.0  # seconds for which a signed request is taken


class Unsigned(Exception):
    """A request that this token did not sign, and why."""


def token() -> bytes:
    """The join token in the environment; empty where there is none, which will do on one machine."""
    return os.environb.get(TOKEN.encode(), b"").strip()


def sign(token: bytes, *parts: bytes) -> str:
    """The signature of these parts, in this order, as hexadecimal digits."""
    lengths = b"".join(b"%d:" % len(part) for part in parts)  # or ("ab", "c") would be ("a", "bc")
    return hmac.new(token, lengths + b"".join(parts), hashlib.sha256).hexdigest()


def signs(signature: str, token: bytes, *parts: bytes) -> bool:
    """Whether it is the signature of these parts."""
    return hmac.compare_digest(signature.encode(), sign(token, *parts).encode())


def headers(token: bytes, path: str, body: bytes = b"") -> dict[str, str]:
    """Those of a request whose body is this JSON, which they sign."""
    now = f"{time.time():.3f}"
    return {"content-type": "application/json", TIME: now, SIGNATURE: sign(token, path.encode(), now.encode(), body)}


def check(token: bytes, path: str, body: bytes, given: Mapping[str, str]) -> None:
    """Raise Unsigned unless these headers sign a request of this minute."""
    when, signature = given.get(TIME, ""), given.get(SIGNATURE, "")
    if not signs(signature, token, path.encode(), when.encode(), body):
        raise Unsigned(f"the join token is wrong: check {TOKEN} on both sides")
    if abs(age := time.time() - float(when)) > AGE:
        raise Unsigned(f"the request was signed {age:.0f} s ago: set the clocks of both machines")
