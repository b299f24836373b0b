"""The supervisor: it starts the edge and the workers, starts what dies again, and ends all of them with itself.

Workers are those of its own edge, or join edges that run elsewhere; an edge may also run alone.
"""

import asyncio
import itertools
import json
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtools import machine
from vtools.process import Failure, TryAgain, announce, die_of, say
from vtools.serve import keys, spot

BACKOFF = (0.0, 0.0, 0.5, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before the next start, by deaths in a row
LIVED = 60.0  # seconds after which a death is the first in a row
FROZEN = 10.0  # seconds to answer for a worker that lost an answer; to end for what has had its grace
UNMOVED = 15.0  # seconds without a sign of life from a worker whose edges, which have left it by then, are elsewhere
LINE = 1 << 20  # bytes of the longest line that a child writes
Event = Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class Child:
    """A process that is to run as long as the supervisor does."""

    name: str
    module: str
    settings: dict[str, Any]
    model: str | None = None  # of a worker
    process: asyncio.subprocess.Process | None = None
    deaths: int = 0
    gpu: str | None = None  # of a worker
    socket: str = ""  # of a worker
    digest: str = ""  # of the weights that it came up with first
    ever_up: bool = False
    retired: bool = False  # it ends for good
    heard: float = 0.0  # when one that has joined edges last showed that it moves
    up: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Workers, and their edge if it has a `listener`. `models` are references by name; `edge` are its settings.

    `places` are the settings of each worker that joins other edges: one worker for each. `notice` is where it is said
    that this machine is about to be taken away.
    """

    def __init__(
        self,
        models: dict[str, str],
        workers: int,
        listener: socket.socket | None,
        edge: dict[str, Any],
        worker: dict[str, Any],
        event: Event,
        places: list[dict[str, Any]] | None = None,
        notice: spot.Source | None = None,
    ) -> None:
        self._listener, self._write, self._notice = listener, event, notice
        self._held: list[dict[str, Any]] | None = []  # events before `ready`
        # Only its owner can enter it. The path of a Unix socket has at most 107 bytes.
        place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 64 else "/tmp"
        self._folder = tempfile.TemporaryDirectory(prefix="vtools-serve-", dir=place)
        names = [(f"{model}.{number}", model, path) for model, path in models.items() for number in range(workers)]
        gpus = itertools.cycle(machine.gpus() or [None])
        self._workers = [
            Child(name, "vtools.serve.worker", {**worker, "model": path}, model, gpu=gpu)
            for (name, model, path), gpu in zip(names, gpus, strict=False)
        ]
        for child, joining in zip(self._workers, places or [], strict=False):
            child.module, child.settings = "vtools.serve.joined", {**child.settings, **joining, "name": child.model}
        fd = listener.fileno() if listener else -1
        self._edge = Child("edge", "vtools.serve.edge", {**edge, "models": models, "fd": fd}) if listener else None
        self._told: dict[str, dict[str, Any]] = {}  # of the workers that are up, for an edge that starts again
        self._probed: set[int] = set()  # pids of workers that lost an answer, and have not answered since
        self._grace: float = edge["grace"]
        self._ending = False
        self._failed: Failure | None = None
        self._done = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Until SIGTERM (returns) or SIGINT (die of it); both let answers finish. Raises Failure if a start fails."""
        loop = asyncio.get_running_loop()
        asked: list[int] = []

        def end(signum: int) -> None:
            asked.append(signum)
            if len(asked) > 1:
                self._folder.cleanup()
                die_of(signum)
            if signum == signal.SIGINT and os.isatty(2):
                announce("serve", "running answers may finish; Ctrl-C again ends at once")
            self._end()

        rereads = self._edge is not None and keys.FILE in os.environ
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signum == signal.SIGHUP and rereads:
                loop.add_signal_handler(signum, self._tell, {"keys": True})
            elif signal.getsignal(signum) is not signal.SIG_IGN:
                loop.add_signal_handler(signum, end, signum)
        tasks = [asyncio.create_task(self._keep(child)) for child in self._workers]
        if self._edge is None:
            tasks.append(asyncio.create_task(self._watch()))
        if self._notice:
            tasks.append(asyncio.create_task(self._leave(self._notice)))
        try:
            started = asyncio.gather(*(child.up.wait() for child in self._workers))
            await self._first(started)
            if not asked and not self._failed and self._edge is not None:
                tasks.append(asyncio.create_task(self._keep(self._edge)))
                await self._first(asyncio.ensure_future(self._edge.up.wait()))
            if not asked and not self._failed:
                ready()
                held, self._held = self._held or [], None
                for event in held:
                    self._write(event)
                await self._done.wait()
        finally:
            self._ending = True
            for child in self._children():
                self._kill(child)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._folder.cleanup()
        if self._failed:
            raise self._failed
        if asked and asked[0] != signal.SIGTERM:
            die_of(asked[0])

    def _children(self) -> list[Child]:
        return [*self._workers, *([self._edge] if self._edge else [])]

    def _end(self, signum: int = signal.SIGTERM) -> None:
        """Have what faces other processes, the edge or workers that joined some, finish and end."""
        self._ending = True
        running = [child for child in ([self._edge] if self._edge else self._workers) if _runs(child)]
        for child in running:
            assert child.process is not None
            child.process.send_signal(signum if child.ever_up else signal.SIGTERM)
            asyncio.get_running_loop().call_later(self._grace + FROZEN, self._kill, child, child.process.pid)
        if not running:
            self._done.set()

    async def _leave(self, notice: spot.Source) -> None:
        """End once it is said that this machine is about to be taken away."""
        await spot.noticed(notice)
        self._event({"event": "preempted"})
        say("serve", "this machine is about to be taken away: running answers may finish")
        self._failed = TryAgain("this machine was about to be taken away; start again elsewhere")
        self._end(signal.SIGUSR1)

    async def _watch(self) -> None:
        """Kill workers that do not move: the edges that they joined leave them by themselves."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            before, looked = looked, time.monotonic()
            for child in self._workers:
                if looked - before > FROZEN:  # the whole machine stood still
                    child.heard = max(child.heard, looked)
                if child.up.is_set() and _runs(child) and looked - child.heard > UNMOVED:
                    say("serve", f"{child.name} has not moved for {UNMOVED:g} s: killed")
                    self._kill(child)

    def _event(self, what: dict[str, Any]) -> None:
        """Write an event, `ready` before all others."""
        self._write(what) if self._held is None else self._held.append(what)

    def _report(self, child: Child, state: str, **more: str) -> None:
        """Write the event of a worker."""
        self._event({"event": "worker", "state": state, **_about(child), **more})

    async def _first(self, wanted: asyncio.Future[Any]) -> None:
        """Wait until it is there, or until the end."""
        done = asyncio.ensure_future(self._done.wait())
        await asyncio.wait([wanted, done], return_when=asyncio.FIRST_COMPLETED)
        for one in (wanted, done):
            one.cancel()

    async def _keep(self, child: Child) -> None:
        """Run a child, again and again."""
        number = 0
        while not self._ending and not child.retired:
            number += 1
            began = time.monotonic()
            # At the first start workers share the memory; later the others have taken theirs.
            sharing = sum(other.gpu == child.gpu for other in self._workers) if number == 1 else 1
            settings = {**child.settings, "parent": os.getpid(), "processes": sharing}
            if child.model is not None and "join" not in settings:
                child.socket = str(Path(self._folder.name) / f"{self._workers.index(child)}.{number}")
                settings["socket"] = child.socket
            try:
                reason = await self._run(child, settings)
            except OSError as error:
                reason = f"it cannot be started ({error.strerror or error})"
            if self._ended(child, reason):
                return
            child.deaths = child.deaths + 1 if time.monotonic() - began < LIVED else 1
            pause = BACKOFF[min(child.deaths - 1, len(BACKOFF) - 1)]
            again = f"again in {pause:g} s" if pause else "again at once"
            say("serve", f"{child.name} ended: {reason}; it starts {again}")
            await asyncio.sleep(pause)

    async def _run(self, child: Child, settings: dict[str, Any]) -> str:
        """Run a child once; why it ended. Raises OSError if it cannot start."""
        process = child.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", child.module, json.dumps(settings),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE,
            pass_fds=[self._listener.fileno()] if child is self._edge and self._listener else [],
            env=os.environ if child.gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": child.gpu},
        )  # fmt: skip
        if child is self._edge:
            for told in self._told.values():
                self._tell(told)
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                self._heard(child, json.loads(line))
        except ValueError as error:  # what it says is no JSON, or has no end
            say("serve", f"{child.name} (pid {process.pid}): {error}; killed")
            process.kill()
        return _reason(await process.wait())

    def _kill(self, child: Child, pid: int | None = None) -> None:
        """End a child at once, if it runs, and still has this pid."""
        if child.process is not None and child.process.returncode is None and pid in (None, child.process.pid):
            child.process.kill()

    def _heard(self, child: Child, said: dict[str, Any]) -> None:
        """What a child said on its stdout."""
        assert child.process is not None
        if child.model is not None and "up" in said and child.digest not in ("", said["up"]["digest"]):
            say(
                "serve", f"{child.name}: the weights in {child.settings['model']} have changed; start the command again"
            )
            self._kill(child)  # answers would go on with other weights
        elif "up" in said:
            child.ever_up, child.heard = True, time.monotonic()
            child.up.set()
            if child.model is not None:
                child.digest = said["up"]["digest"]
                self._told[child.name] = {"up": {**_about(child), "socket": child.socket, **said["up"]}}
                self._tell(self._told[child.name])
                self._report(child, "up")
        elif "moves" in said:
            child.heard = max(child.heard, time.monotonic())
        elif "retire" in said:
            self._retire(said["retire"])
        elif "draining" in said:
            child.retired = child.retired or said.get("for_good", False)
            child.heard = math.inf  # it has until its grace is over
            self._told.pop(child.name, None)
            self._tell({"draining": _about(child)})
            asyncio.get_running_loop().call_later(self._grace + FROZEN, self._kill, child, child.process.pid)
            self._report(child, "draining")
        elif "failed" in said:
            if not child.ever_up and self._failed is None:
                self._failed = Failure(f"{child.name}: {said['failed']}" if child.model else said["failed"])
                self._done.set()
            else:
                say("serve", f"{child.name}: {said['failed']}")
        elif "doubted" in said:
            asyncio.get_running_loop().create_task(self._probe(said["doubted"]))
        else:
            self._event(said)

    def _retire(self, names: list[str]) -> None:
        """Have workers finish, and start them no more."""
        for child in self._workers:
            if child.name in names:
                child.retired = True
                if _runs(child) and child.process is not None:
                    child.process.terminate()

    def _ended(self, child: Child, reason: str) -> bool:
        """Tell the edge of a worker that ended; whether this was wanted."""
        if child.model is not None:
            self._told.pop(child.name, None)
            self._tell({"down": _about(child)})
            if child.up.is_set() and not self._ending:
                child.up.clear()
                self._report(child, "down", reason=reason)
            left = [other for other in self._workers if other is not child and not other.retired]
            alone = self._edge is None
            if alone and (not any(map(_runs, self._workers)) if self._ending else child.retired and not left):
                self._done.set()
        elif self._ending:
            self._done.set()
        if not child.ever_up and not self._ending and self._failed is None:
            memory = "; is there memory enough?" if reason == "SIGKILL" else ""
            self._failed = Failure(f"{child.name} ended before it was up: {reason}{memory}")
            self._done.set()
        return self._ending or child.retired or self._failed is not None

    def _tell(self, what: dict[str, Any]) -> None:
        """Write to the edge's stdin."""
        edge = self._edge.process if self._edge else None
        if edge is not None and edge.returncode is None and edge.stdin is not None and not edge.stdin.is_closing():
            edge.stdin.write(json.dumps(what).encode() + b"\n")

    async def _probe(self, pid: int) -> None:
        """Kill a worker that lost an answer, unless it answers soon: it is frozen, and starts again."""
        child = next((one for one in self._workers if one.process is not None and one.process.pid == pid), None)
        if child is None or child.process is None or pid in self._probed:
            return
        self._probed.add(pid)
        try:
            async with asyncio.timeout(FROZEN):
                reader, writer = await asyncio.open_unix_connection(child.socket)
                writer.write(b"GET /health HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n")
                await reader.readuntil(b"\r\n")
                writer.close()
            self._tell({"alive": _about(child)})
        except TimeoutError:
            say("serve", f"{child.name} (pid {pid}) has not answered for {FROZEN:g} s: killed")
            self._kill(child, pid)
        except (OSError, asyncio.IncompleteReadError):
            pass  # it is ending
        finally:
            self._probed.remove(pid)


def _about(child: Child) -> dict[str, Any]:
    """Which worker, and which process of it; no process if none could be started."""
    return {"model": child.model, "worker": child.name, "pid": child.process.pid if child.process else None}


def _runs(child: Child) -> bool:
    return child.process is not None and child.process.returncode is None


def _reason(code: int) -> str:
    """Why a process ended, by its exit status."""
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
