"""Downloads from several hosts at once, given out in the order of the sources."""

import itertools
import math
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

CHUNK = 1 << 16
WINDOW = 256  # sources that are downloaded ahead of the one that is given out: each is an open file
IN_MEMORY = 1 << 16  # bytes of each; what is longer goes to disk

Read = Callable[[int], Iterator[bytes]]


class Ahead:
    """The content of numbered sources. A host's are read one after another, by one of `jobs` threads at a time."""

    def __init__(self, urls: list[tuple[int, str]], read: Read, jobs: int) -> None:
        """`urls` are numbered in the order in which they will be asked for; `read(number)` gives the bytes."""
        self._read = read
        self._waiting: dict[str, deque[int]] = {}  # by host, without those that a thread is reading from
        self._next = {number: after for (number, _), (after, _) in itertools.pairwise(urls)}
        self._end: float = urls[WINDOW][0] if len(urls) > WINDOW else math.inf  # the first that may not begin yet
        self._ready: dict[int, tuple[Any, Exception | None]] = {}
        self._changed = threading.Condition()
        self._stopped = False
        for number, url in urls:
            self._waiting.setdefault(urlsplit(url).netloc, deque()).append(number)
        for _ in range(min(jobs, len(self._waiting))):
            threading.Thread(target=self._work, daemon=True, name="download").start()

    def chunks(self, number: int) -> Iterator[bytes]:
        """The bytes of a source, and then the error that ended it."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._ready)
            spool, error = self._ready.pop(number)
            self._end = self._next.get(int(self._end), math.inf) if self._end < math.inf else math.inf
            self._changed.notify_all()
        with spool:
            spool.seek(0)
            yield from iter(lambda: spool.read(CHUNK), b"")
        if error:
            raise error

    def stop(self) -> None:
        """Begin no more downloads."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _first(self) -> str | None:
        """The host whose next source is needed first, if that may begin."""
        host = min(self._waiting, key=lambda host: self._waiting[host][0], default=None)
        return host if host is not None and self._waiting[host][0] < self._end else None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._first() is not None)
                host = self._first()
                if self._stopped or host is None:
                    return
                numbers = self._waiting.pop(host)
            number = numbers.popleft()
            spool: Any = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  closed once it is given out
            error: Exception | None = None
            try:
                for chunk in self._read(number):
                    spool.write(chunk)
            except Exception as raised:  # whoever asks for this source shall see it
                error = raised
            with self._changed:
                self._ready[number] = spool, error
                if numbers:
                    self._waiting[host] = numbers
                self._changed.notify_all()
