"""From the options of `vtools serve` to its processes: an edge with its own workers, or workers that join edges."""

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vtools.inference.address import Server
from vtools.models.reference import model_folder
from vtools.process import UsageFailure, say
from vtools.serve import admission, keys, listen, signatures, spot, worker_url
from vtools.serve.supervisor import Supervisor

PORT = 8000
URLS = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Settings:
    """The options as they were given; `edges` are the URLs of those to join."""

    models: list[str]
    edges: list[str]
    swap: bool
    port: int | None
    host: str
    spot: str | None
    allow_net: list[str] | None
    tls_cert: str | None
    tls_key: str | None
    template: str | None
    system: str | None
    dtype: str
    max_requests: int
    workers: int
    grace: float
    allow_origin: list[str] | None
    quiet: bool


def start(given: Settings) -> None:
    """Serve until SIGTERM. Raises Failure."""
    engines, models = divided(given.models)
    named = names(models)
    _check_tls(given)
    for reference in named.values():
        model_folder(reference)
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, len(named) * given.workers))
    worker = {
        "template": given.template, "system": given.system, "dtype": given.dtype, "threads": threads,
        "max_requests": given.max_requests, "grace": given.grace,
    }  # fmt: skip
    if not given.edges:
        _serve(given, named, engines, worker)
    elif engines:
        raise UsageFailure(f"{engines[0][1]} is an engine of its own: name it as a MODEL of the edge, not with --join")
    else:
        _join(given, named, worker)


def _serve(
    given: Settings, named: dict[str, str], engines: list[tuple[str | None, str]], worker: dict[str, Any]
) -> None:
    """Run an edge with its workers, in front of engines of others."""
    if given.spot:
        raise UsageFailure("--spot is for workers, whose answers others go on with: add --join")
    known = keys.Keys(os.environb)
    origins = given.allow_origin or []
    admission.check_origins(origins, bool(known))
    networks = list(map(str, worker_url.networks(given.allow_net or [])))
    listener = listen.bind(given.host, PORT if given.port is None else given.port)
    loopback = listen.is_loopback(listener)
    if not loopback and not known:
        needed = f"set {keys.KEY} or {keys.FILE} in the environment first"
        raise UsageFailure(f"--host {given.host} is open to other machines: {needed}")
    if not loopback and not named and not engines and not signatures.token():
        raise UsageFailure(
            f"--host {given.host}: an edge alone needs workers, and they {signatures.TOKEN}: set it first"
        )
    listen.start(listener)
    url = f"{listen.url(listener, given.host, bool(given.tls_cert))}/v1"

    def ready() -> dict[str, Any]:
        if not given.quiet:
            what = ", ".join([*named, *(name or url for name, url in engines)]) or "an edge that workers join"
            say("serve", f"{what} at {url} (Ctrl-C stops)")
        return {"event": "ready", "url": url, "models": list(named)}

    edge = {
        "template": given.template, "system": given.system, "most": given.max_requests, "grace": given.grace,
        "host": given.host, "origins": origins, "networks": networks, "loopback": loopback,
        "tls_cert": given.tls_cert, "tls_key": given.tls_key, "engines": engines,
    }  # fmt: skip
    _run(lambda put: Supervisor(named, given.workers, listener, edge, worker, put), ready)


def _join(given: Settings, named: dict[str, str], worker: dict[str, Any]) -> None:
    """Run workers of edges elsewhere."""
    if not named:
        raise UsageFailure("--join needs a MODEL, which this worker is to run")
    for option, value in (("--allow-net", given.allow_net), ("--allow-origin", given.allow_origin)):
        if value:
            raise UsageFailure(f"{option} is an edge's, and --join starts a worker: leave one out")
    notice = spot.source(given.spot) if given.spot else None
    holders = []
    for number in range(len(named) * given.workers):
        holders.append(listen.bind(given.host, given.port + number if given.port else 0, shared=True))
    _check_reach(given, holders[0])
    began = time.time() if given.swap else 0.0
    places = [
        {
            "join": given.edges, "url": listen.url(holder, given.host, bool(given.tls_cert)), "swap": began,
            "at": list(holder.getsockname()), "spot": notice is not None,
            "tls_cert": given.tls_cert, "tls_key": given.tls_key,
        } for holder in holders
    ]  # fmt: skip

    def ready() -> dict[str, Any]:
        if not given.quiet:
            say("serve", f"{', '.join(named)} for {', '.join(given.edges)} (Ctrl-C stops)")
        return {
            "event": "ready",
            "join": given.edges,
            "urls": [place["url"] for place in places],
            "models": list(named),
        }

    edge = {"grace": given.grace}
    _run(lambda put: Supervisor(named, given.workers, None, edge, worker, put, places, notice), ready)


def _run(made: Callable[[Callable[[dict[str, Any]], None]], Supervisor], ready: Callable[[], dict[str, Any]]) -> None:
    events = listen.Events()
    try:
        asyncio.run(made(events.put).run(lambda: events.put(ready())))
    finally:
        events.close()


def _check_reach(given: Settings, holder: socket.socket) -> None:
    """Raise UsageFailure where the edges could not reach this worker, or everybody could."""
    if not listen.is_loopback(holder):
        if not signatures.token():
            raise UsageFailure(
                f"--host {given.host} is open to other machines: set {signatures.TOKEN} in the environment"
            )
        return
    for edge in given.edges:
        if not Server(edge).loopback:
            raise UsageFailure(
                f"--join {edge} is another machine, which cannot reach {given.host}: give an address by --host"
            )


def _check_tls(given: Settings) -> None:
    """Raise UsageFailure for a certificate without its key, or that is none."""
    if bool(given.tls_cert) != bool(given.tls_key):
        raise UsageFailure("--tls-cert and --tls-key belong together: give both")
    if given.tls_cert:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(given.tls_cert, given.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise UsageFailure(f"--tls-cert {given.tls_cert}, --tls-key {given.tls_key}: {error}") from None


def divided(models: list[str]) -> tuple[list[tuple[str | None, str]], list[str]]:
    """The engines of others among `[NAME=]MODEL` arguments, name and URL, and the rest. Raises UsageFailure."""
    engines: list[tuple[str | None, str]] = []
    rest = []
    for argument in models:
        name, _, url = ("", "", argument) if argument.startswith(URLS) else argument.partition("=")
        if url.startswith(URLS):
            Server(url)
            engines.append((name or None, url))
        else:
            rest.append(argument)
    return engines, rest


def names(models: list[str]) -> dict[str, str]:
    """`[NAME=]MODEL` arguments to references by name. Raises UsageFailure for a name used twice."""
    named: dict[str, str] = {}
    for argument in models:
        name, equals, reference = argument.partition("=")
        if not equals or os.path.exists(argument):
            path = os.path.abspath(argument.removeprefix("hf:").partition("@")[0])
            name, reference = os.path.basename(path).removesuffix(".gguf"), argument
        if not name or not reference:
            raise UsageFailure(f"{argument}: not a model; write MODEL or NAME=MODEL")
        if name in named:
            raise UsageFailure(f"{argument}: another model is named {name} already; name this one with NAME=MODEL")
        named[name] = reference
    return named
