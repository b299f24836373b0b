"""One server, or several that serve the same models: where one fails, the next is asked."""

import itertools
import socket
import sys
import threading
import time

from vtools.inference.address import Server
from vtools.process import Failure, UsageFailure

CONNECT = 10.0  # seconds


class Link:
    """A server and the client that asks it."""

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout` limits a silence of the server, in seconds. Raises Failure."""
        self.server = Server(url)
        if not self.server.key and self.server.is_openai:
            raise Failure(
                f"{self.server.url}: OPENAI_API_KEY is not set; set it, or name another server with --base-url"
            )
        import httpx2
        import openai

        self.client = openai.OpenAI(
            base_url=self.server.url,
            api_key=self.server.key or "none",
            # We retry ourselves: the library retries timeouts as often as refusals (600 s six times is an hour), and
            # its waits for Retry-After have no jitter, so all threads would return at once.
            max_retries=0,
            timeout=httpx2.Timeout(timeout, connect=CONNECT),
            http_client=openai.DefaultHttpxClient(trust_env=False) if self.server.loopback else None,
        )


class Servers:
    """The servers of a list of URLs with commas between them. Thread-safe."""

    def __init__(self, urls: str, timeout: float) -> None:
        listed = list(dict.fromkeys(url.strip() for url in urls.split(",") if url.strip()))
        if not listed:
            raise UsageFailure(f"--base-url {urls!r}: no URL")
        self._links = [Link(url, timeout) for url in listed]
        self._place = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._links)

    @property
    def first(self) -> Link:
        """The one that was named first."""
        return self._links[0]

    @property
    def current(self) -> Link:
        """The one to ask."""
        return self._links[self._place]

    def leave(self, link: Link) -> None:
        """Ask the next one from now on, if this one is still asked."""
        with self._lock:
            if self.current is link:
                self._place = (self._place + 1) % len(self)

    def close(self) -> None:
        """Close the connections."""
        for link in self._links:
            link.client.close()

    def wait_for_start(self, seconds: float) -> None:
        """Wait until one is there, if all are on this machine: those started a moment ago may still load their models.

        Raises Failure.
        """
        if not all(link.server.loopback for link in self._links):
            return
        deadline = time.monotonic() + seconds
        for attempt in itertools.count():
            for place, link in enumerate(self._links):
                try:
                    socket.create_connection((link.server.host, link.server.port), timeout=5).close()
                    self._place = place
                    return
                except ConnectionRefusedError:
                    pass
                except OSError as error:
                    if len(self) == 1:
                        raise Failure(f"{link.server.url}: {error.strerror or error}") from None
            named = " and ".join(link.server.url for link in self._links)
            if time.monotonic() >= deadline:
                raise Failure(
                    f"{named}: no server listens there; start it (vtools serve MODEL) or name another --base-url"
                )
            if attempt == 0:
                print(f"vtools: waiting for {named} to start ({seconds:.0f} s at most)", file=sys.stderr)
            time.sleep(0.2)
