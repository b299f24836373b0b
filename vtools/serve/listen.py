"""The socket, the server around the application, and its shutdown."""

import errno
import ipaddress
import queue
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from vtools.process import Failure, Interrupted, UsageFailure
from vtools.records import jsonl

GRACE = 25  # seconds for running requests to finish: spot machines give 30


def bind(host: str, port: int) -> socket.socket:
    """A socket that owns the port but does not listen yet. Raises Failure if the port is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageFailure(f"--host {host}: {error}") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        raise _taken(error, host, port) from None
    return listener


def _taken(error: OSError, host: str, port: int) -> Failure:
    if error.errno == errno.EADDRINUSE:
        return Failure(f"port {port} on {host} is busy; choose another with --port (0 takes a free one)")
    return Failure(f"port {port} on {host}: {error.strerror}")


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url(listener: socket.socket, host: str) -> str:
    """The base URL for clients."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"


class Events:
    """JSON lines on stdout, written by a separate thread: a slow reader must not block the server."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True, name="events")
        self._thread.start()

    def put(self, event: dict[str, Any]) -> None:
        """Write this event soon."""
        self._lines.put(event)

    def close(self) -> None:
        """Write the remaining events, if the reader takes them within a few seconds."""
        self._lines.put(None)
        self._thread.join(5)

    def _write(self) -> None:
        with jsonl.output(None) as out:
            while (line := self._lines.get()) is not None:
                out.write(line)


def run(application: Any, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM (returns) or SIGINT (raised again); both let requests finish."""
    import uvicorn

    try:
        listener.listen(2048)
    except OSError as error:  # another process bound the same port and listened first
        raise _taken(error, *listener.getsockname()[:2]) from None
    config = uvicorn.Config(
        application,
        loop="asyncio",
        http="h11",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()  # not before: from here on uvicorn handles the signals

    try:
        Server(config).run(sockets=[listener])
    except Interrupted as interrupt:
        if interrupt.signum != signal.SIGTERM:
            raise
