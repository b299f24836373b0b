"""The limits of downloads."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Per host: requests per second. Per source: seconds of silence, seconds in all, bytes."""

    rate: float = 1.0
    timeout: float = 30.0
    seconds: float = 6 * 3600.0
    size: int = 100_000_000_000


USUAL = Limits()
