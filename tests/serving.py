"""`vtools serve` as a process for tests, and what to ask it."""

from __future__ import annotations

import json
import queue
import resource
import signal
import threading
from pathlib import Path

import httpx2
import openai
import running
from engines import ask
from running import wait_until


class Server:
    """`vtools serve` as a process; its events are collected as they are written."""

    def __init__(self, *arguments: object, limit: int | None = None, **environment: str) -> None:
        """`limit` is how many files a process may have open."""
        limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))} if limit else {}
        ported = arguments if "--port" in arguments else (*arguments, "--port", 0)
        self._running = running.start("serve", *ported, env=environment, **limits)
        self.process = self._running.__enter__()
        self.lines: list[bytes] = []
        self.errors: list[bytes] = []
        self.workers: list[dict] = []  # events of workers, which come at any time
        self.leases: list[dict] = []  # events of workers that joined
        self._events: queue.Queue = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._listen, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.ready = self.event()
        self.url = self.ready.get("url", "")  # none of a worker that joins
        number = arguments[arguments.index("--workers") + 1] if "--workers" in arguments else 1
        wait_until(lambda: len(self.workers) >= number * len(self.ready["models"]))

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            event = json.loads(line)
            if event["event"] in ("worker", "lease"):
                (self.workers if event["event"] == "worker" else self.leases).append(event)
            else:
                self._events.put(event)

    def _listen(self) -> None:
        self.errors.extend(self.process.stderr)

    def event(self) -> dict:
        """The next event."""
        return self._events.get(timeout=120)

    def forget(self) -> None:
        """Leave out the events of earlier tests, also those that are still on their way."""
        wait_until(lambda: self.health()["in_flight"] == 0)
        self.post(body(model="talker", max_tokens=1 << 20))  # refused, as no test is with this model
        while (event := self.event())["model"] != "talker" or event["status"] != 400:
            pass

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)

    def post(self, body: object = None, **options) -> httpx2.Response:
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        return httpx2.post(f"{self.url}/chat/completions", timeout=120, **{**content, **options})

    def health(self) -> dict:
        return httpx2.get(self.url.removesuffix("/v1") + "/health", timeout=60).json()

    def end(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        code = self.process.wait(60)
        for thread in self._threads:
            thread.join(60)
        self._running.__exit__(None, None, None)
        return code

    def children(self) -> list[int]:
        """The processes that the command has started."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def pids(self) -> dict[str, int]:
        """The workers that are up, by name."""
        up: dict[str, int] = {}
        for event in list(self.workers):
            if event["state"] == "up":
                up[event["worker"]] = event["pid"]
            elif up.get(event["worker"]) == event["pid"]:
                del up[event["worker"]]
        return up


class Joined(Server):
    """`vtools serve MODEL --join` as a process."""

    def __init__(self, model: object, *edges: Server, options: tuple[object, ...] = (), **environment: str) -> None:
        super().__init__(model, "--join", ",".join(edge.url for edge in edges), *options, **environment)


def status(edge: Server, **environment: str) -> dict:
    """What `--status` says of an edge."""
    return running.good("serve", "--status", edge.url, env=environment)[0]


def states(edge: Server, **environment: str) -> dict[str, str]:
    """The states of an edge's workers, by name."""
    return {worker["worker"]: worker["state"] for worker in status(edge, **environment)["workers"]}


def body(**changes: object) -> dict:
    return {"model": "short", "messages": ask("the cat"), "max_tokens": 8, "temperature": 0, **changes}


def value(server: Server, line: str) -> float:
    """What /metrics says of one count, named by its line up to the number."""
    text = httpx2.get(server.url.removesuffix("/v1") + "/metrics").text
    return next(float(found.rpartition(" ")[2]) for found in text.splitlines() if found.startswith(line + " "))
