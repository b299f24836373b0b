"""When to retry a request."""

import email.utils
import random
import time
from typing import Any

RETRIES = 6  # 0.5 + 1 + 2 + 4 + 8 + 16 s: half a minute in total
LONGEST_WAIT = 120.0  # seconds; a server that asks for more will not answer in this run


def wait(attempt: int, allowed: int, asked: float | None = None, first: float = 0.5) -> float | None:
    """Seconds until the next attempt after number `attempt` (from 0), or None to give up.

    `asked` is the wait that the server requests. Waits double each time, with jitter, so that clients that failed
    together do not return together.
    """
    if attempt >= allowed or (asked is not None and asked > LONGEST_WAIT):
        return None
    if asked is not None:
        return asked * random.uniform(1, 1.25)
    return min(first * 2**attempt, 30) * random.uniform(0.75, 1.25)


def silences(timeout: float) -> int:
    """How often a request is repeated that met silence until its timeout: for a minute in all, and at least once."""
    return max(1, min(RETRIES, int(60 / timeout)))


def is_transient(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in (408, 409, 425, 429) or status >= 500


def after(headers: Any) -> float | None:
    """The seconds in a Retry-After header, given as seconds or as a date (RFC 9110 10.2.3)."""
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
