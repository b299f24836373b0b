"""One host, asked politely: one connection, a pause between requests, its robots.txt, and an end to trying in vain."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

AGENT = "vtools"  # the name that a robots.txt may have rules for
FAILURES = 5  # sources in a row, each after its retries: then the rest of them are not tried


class Host:
    """A host by its scheme, name and port. One thread at a time has its turn with it."""

    def __init__(self, client: Any, rate: float) -> None:
        """`rate` is in requests per second."""
        self.client = client
        self.pause = 1 / rate
        self.robots: Any = None  # once it was read: its rules
        self.failures = 0
        self._free_at = 0.0
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[Any]:
        """The connection, once the pause since the last response is over.

        The pause is measured from when the last response began, not from its request: however long either was on its
        way, the server sees no two requests closer together.
        """
        with self._turn:
            time.sleep(max(0.0, self._free_at - time.monotonic()))
            try:
                yield self.client
            except BaseException:
                self.answered()
                raise

    def answered(self) -> None:
        """Note that a response has begun, or that none came."""
        self._free_at = max(self._free_at, time.monotonic() + self.pause)

    def rest(self, seconds: float) -> None:
        """Send nothing for so long."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)

    def obey(self, robots: str) -> None:
        """Follow a robots.txt from now on (RFC 9309), with the Crawl-delay and Request-rate that it asks for."""
        import protego

        self.robots = protego.Protego.parse(robots)
        asked = self.robots.request_rate(AGENT)
        delays = [self.robots.crawl_delay(AGENT), asked.seconds / asked.requests if asked and asked.requests else None]
        self.pause = max([self.pause, *(float(each) for each in delays if each)])
        self.answered()  # the pause after this file is already theirs
