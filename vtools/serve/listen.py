"""The socket that clients connect to, and the events on stdout."""

import contextlib
import errno
import ipaddress
import os
import queue
import resource
import socket
import sys
import threading
from typing import Any

import orjson

from vtools.process import Failure, UsageFailure

UNREAD = 60_000  # milliseconds after which a client that does not read loses its connection


def bind(host: str, port: int, shared: bool = False) -> socket.socket:
    """A socket that owns the port but does not listen yet. Raises Failure if the port is taken.

    Where it is `shared`, another socket of this user can listen on it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageFailure(f"--host {host}: {error}") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD)  # of the connections, too
    try:
        listener.bind(address)
    except OSError as error:
        raise _taken(error, host, port) from None
    return listener


def shared(address: list[Any]) -> socket.socket:
    """A socket that listens on the address of a shared one, until its process ends: then connections are refused."""
    listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(tuple(address))
    listener.listen(2048)
    return listener


def _taken(error: OSError, host: str, port: int) -> Failure:
    if error.errno == errno.EADDRINUSE:
        return Failure(f"port {port} on {host} is busy; choose another with --port (0 takes a free one)")
    return Failure(f"port {port} on {host}: {error.strerror}")


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url(listener: socket.socket, host: str, tls: bool = False) -> str:
    """The URL of a server that is called `host`."""
    scheme = "https" if tls else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


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
        with contextlib.suppress(OSError):  # a reader that goes away does not end the server
            while (line := self._lines.get()) is not None:
                sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
                sys.stdout.buffer.flush()
            return
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is buffered must not fail again at the exit
        while self._lines.get() is not None:
            pass


def start(listener: socket.socket) -> None:
    """Listen; from now on clients wait for an answer. Raises Failure if another process has taken the port since.

    This process and those that it starts may then open as many files, and so connections, as the system allows.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    try:
        listener.listen(2048)
    except OSError as error:  # another process bound the same port and listened first
        raise _taken(error, *listener.getsockname()[:2]) from None
