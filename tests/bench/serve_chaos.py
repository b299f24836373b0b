"""What clients of a fleet get while its workers are killed, frozen, drained, replaced and swapped at random.

    python tests/bench/serve_chaos.py [--requests 500] [--seconds 120] [--clients 8] [--every 5] [--seed 0]
        [--faults kill,freeze,drain,swap] [--fastchat PYTHON]

Four workers of two tiny random models on addresses of their own behind one edge of `vtools serve`. An answer is lost if
it is not the text that the same request had before the faults began, with its end. With --fastchat, a Python in whose
environment `fschat` is, the same requests and faults (kill and freeze) meet FastChat's controller and API server, with
workers of its own base class that write 60 numbered words; killed ones are started again, frozen ones thaw after 10 s.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).parents[1]))
from engines import made

from vtools.serve import control

TOKENS = 60
MODELS = ("a", "b")
HEALED = 10.0  # seconds after which a worker that is ready is a new one
PATIENCE = 240.0  # seconds for a process to be there
WORKER = """
import sys, time, uvicorn, argparse
from fastchat.serve import base_model_worker as base
class Worker(base.BaseModelWorker):
    def __init__(self, controller, address, name):
        super().__init__(controller, address, name, name, [name], 32, "vicuna_v1.1")
        self.context_len = 4096
        self.init_heart_beat()
    def count_token(self, params):
        return {"count": 1, "error_code": 0}
    def generate_stream_gate(self, params):
        import json
        self.call_ct += 1
        text = ""
        for number in range(60):
            time.sleep(0.02)
            text += f"w{number} "
            usage = {"prompt_tokens": 1, "completion_tokens": number + 1, "total_tokens": number + 2}
            end = "stop" if number == 59 else None
            yield json.dumps({"text": text, "error_code": 0, "usage": usage, "finish_reason": end}).encode() + b"\\0"
    def generate_gate(self, params):
        import json
        for found in self.generate_stream_gate(params):
            pass
        return json.loads(found[:-1])
controller, address, name = sys.argv[1:]
base.worker = Worker(controller, address, name)
uvicorn.run(base.app, host="127.0.0.1", port=int(address.rpartition(":")[2]), log_level="error")
"""


class Fleet:
    """`vtools serve`: an edge, and workers that join it."""

    faults: tuple[str, ...] = ("kill", "freeze", "drain", "swap")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models = {
            name: made(folder / name, context=4096, endless=True, seed=seed) for seed, name in enumerate(MODELS)
        }
        self._started: list[subprocess.Popen[str]] = []
        self._pids: dict[str, int] = {}  # of engines, by the names that the edge has for their workers
        self._hurt: dict[str, float] = {}  # when something was done to a worker
        self._addresses = iter(range(2, 250))
        edge = self._start("--port", "0")
        assert edge.stdout is not None
        self.url = json.loads(edge.stdout.readline())["url"]
        threading.Thread(target=collections.deque, args=(edge.stdout, 0), daemon=True).start()
        for name in MODELS * 2:
            self._join(name)
        wait(lambda: sum(len(self.ready(name)) for name in MODELS) == 4)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vtools", "serve", "-q", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        self._started.append(process)
        return process

    def _join(self, name: str, swap: bool = False) -> None:
        host = f"127.0.0.{next(self._addresses)}"
        model = f"{name}={self._models[name]}"
        asked = ("--swap", model, self.url) if swap else (model, "--join", self.url)
        process = self._start(*asked, "--host", host, "--port", "9100")

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "worker" and event["state"] == "up":
                    self._pids[f"{name}@{host}:9100"] = event["pid"]

        threading.Thread(target=listen, daemon=True).start()

    def status(self) -> Any:
        return self._ask("/fleet/status", {})

    def _ask(self, path: str, asked: dict[str, Any]) -> Any:
        return control.ask(self.url.removesuffix("/v1"), path, asked)

    def ready(self, model: str) -> list[str]:
        workers = self.status()["workers"]
        return [one["worker"] for one in workers if one["model"] == model and one["state"] == "ready"]

    def fault(self, what: str, dice: random.Random) -> str | None:
        """Do something to a worker whose model has another; its name."""
        model = dice.choice(MODELS)
        # A frozen worker looks ready until its lease ends: the edge does not know better, and here one of two must be left.
        ready = [name for name in self.ready(model) if time.monotonic() - self._hurt.get(name, -HEALED) > HEALED]
        if len(ready) < 2:
            return None
        if what == "swap":
            self._models["b"] = made(self._folder / "new", context=4096, endless=True, seed=7)
            for _ in range(2):
                self._join("b", swap=True)
            return "b"
        victim = dice.choice(ready)
        self._hurt[victim] = time.monotonic()
        if what == "drain":
            self._ask("/fleet/drain", {"worker": victim})
            self._join(model)
        else:
            os.kill(self._pids[victim], signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        return victim

    def idle(self) -> dict[str, float]:
        """What should be zero once nothing is asked."""
        place = self.url.removesuffix("/v1")
        text = httpx2.get(f"{place}/metrics").text
        gauges = ("vtools_requests_in_flight{", "vtools_requests_waiting{")
        found = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith(gauges)
        }
        for worker in self.status()["workers"]:
            if worker["state"] == "ready":
                found[worker["worker"]] = worker["in_flight"] + worker["load"]
        return found

    def close(self) -> None:
        for process in self._started:
            process.terminate()
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


class FastChat:
    """FastChat's controller and API server, and workers of its base class."""

    faults: tuple[str, ...] = ("kill", "freeze")

    def __init__(self, python: str, folder: Path) -> None:
        self._python, self._folder = python, folder
        controller, api = free_port(), free_port()
        self._controller = f"http://127.0.0.1:{controller}"
        self._others = [
            self._start("-m", "fastchat.serve.controller", "--host", "127.0.0.1", "--port", str(controller)),
            self._start(
                "-m", "fastchat.serve.openai_api_server", "--host", "127.0.0.1", "--port", str(api),
                "--controller-address", self._controller,
            ),
        ]  # fmt: skip
        self.url = f"http://127.0.0.1:{api}/v1"
        self._workers: dict[str, tuple[str, subprocess.Popen[str]]] = {}
        wait(lambda: answers(f"{self._controller}/list_models", "post"))
        for name in MODELS * 2:
            self._join(name, free_port())
        wait(
            lambda: (
                answers(f"{self.url}/models") and len(httpx2.get(f"{self.url}/models").json()["data"]) == len(MODELS)
            )
        )
        time.sleep(5)  # until the second workers are known, too

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        log = open(self._folder / "fastchat.log", "a")  # noqa: SIM115
        return subprocess.Popen([self._python, *arguments], cwd=self._folder, stdout=log, stderr=log, text=True)

    def _join(self, name: str, port: int) -> None:
        address = f"http://127.0.0.1:{port}"
        self._workers[address] = (name, self._start("-c", WORKER, self._controller, address, name))

    def fault(self, what: str, dice: random.Random) -> str | None:
        victim = dice.choice(sorted(self._workers))
        name, process = self._workers[victim]
        process.send_signal(signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        if what == "kill":
            process.wait()
            self._join(name, int(victim.rpartition(":")[2]))
        else:
            threading.Timer(10, process.send_signal, [signal.SIGCONT]).start()
        return victim

    def idle(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        for process in (*self._others, *(process for _, process in self._workers.values())):
            process.kill()
            process.wait()


def environment() -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **threads, "PYTHONPATH": str(Path(__file__).parents[2])}


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def answers(url: str, method: str = "get") -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.request(method, url, timeout=5).status_code == 200
    return False


def wait(wanted: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not wanted():
        if time.monotonic() > end:
            raise SystemExit("a process did not come up in time")
        time.sleep(0.5)


def requests(number: int) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Streams, and every fourth whole; greedy and sampled; of both models."""
    topics = (
        "the cat",
        "one red bird",
        "seven green hills",
        "some cold rain",
        "a mat",
        "that flew over",
        "to find",
        "saw",
    )
    for place in range(number):
        body = {
            "model": MODELS[place % 2],
            "max_tokens": TOKENS,
            "messages": [{"role": "user", "content": topics[place // 2 % 8]}],
        }
        body |= {"temperature": 0} if place // 16 % 2 else {"temperature": 1.0, "seed": 5}
        yield place % 4 != 0, body


def ask(url: str, streamed: bool, body: dict[str, Any]) -> str:
    """The text of an answer that has its end. Raises ValueError for another."""
    if not streamed:
        reply = httpx2.post(f"{url}/chat/completions", json=body, timeout=180)
        if reply.status_code != 200:
            raise ValueError(f"HTTP {reply.status_code}")
        choice = reply.json()["choices"][0]
        if not choice["finish_reason"]:
            raise ValueError("no end")
        return str(choice["message"]["content"])
    text, finish = "", None
    with httpx2.stream("POST", f"{url}/chat/completions", json={**body, "stream": True}, timeout=180) as reply:
        if reply.status_code != 200:
            raise ValueError(f"HTTP {reply.status_code}")
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if "choices" not in event:
                    raise ValueError("an error event")
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    finish = choice.get("finish_reason") or finish
    if not finish:
        raise ValueError("the stream broke off")
    return text


def under_faults(fleet: Any, settings: argparse.Namespace) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """How requests came out, and the faults that there were."""
    asked = list(requests(settings.requests))
    different = {key(body): body for _, body in asked}
    known = {name: {ask(fleet.url, True, body)} for name, body in different.items()}
    outcomes: collections.Counter[str] = collections.Counter()
    got: list[tuple[dict[str, Any], str]] = []
    queue = iter(enumerate(asked))
    lock, began, done = threading.Lock(), time.monotonic(), threading.Event()

    def client() -> None:
        while True:
            with lock:
                place, (streamed, body) = next(queue, (0, (False, {})))
            if not body:
                return
            time.sleep(max(0.0, began + place * settings.seconds / settings.requests - time.monotonic()))
            try:
                text = ask(fleet.url, streamed, body)
                with lock:
                    got.append((body, text))
            except (ValueError, httpx2.HTTPError) as error:
                outcomes[f"lost: {type(error).__name__ if isinstance(error, httpx2.HTTPError) else error}"] += 1

    faults: collections.Counter[str] = collections.Counter()

    def trouble() -> None:
        dice = random.Random(settings.seed)
        kinds = [each for each in settings.faults.split(",") if each in fleet.faults]
        while not done.wait(settings.every):
            late = time.monotonic() - began > settings.seconds / 2
            what = "swap" if "swap" in kinds and late else dice.choice([each for each in kinds if each != "swap"])
            if victim := fleet.fault(what, dice):
                print(f"  {time.monotonic() - began:5.0f} s: {what} {victim}", file=sys.stderr)
                faults[what] += 1
                if what == "swap":
                    kinds.remove("swap")

    threads = [threading.Thread(target=client) for _ in range(settings.clients)]
    troubled = threading.Thread(target=trouble)
    for thread in (*threads, troubled):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    troubled.join()
    if faults["swap"]:  # answers that began after it have the texts of the new weights
        for name, body in different.items():
            known[name].add(ask(fleet.url, True, body))
    for body, text in got:
        outcomes["whole" if text in known[key(body)] else "lost: another text, as if it were whole"] += 1
    return outcomes, faults


def key(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--every", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default="kill,freeze,drain,swap")
    parser.add_argument("--fastchat", metavar="PYTHON")
    settings = parser.parse_args()
    lost = 0
    with tempfile.TemporaryDirectory() as place:
        sides: dict[str, Any] = {"vtools": lambda: Fleet(Path(place))}
        if settings.fastchat:
            sides["FastChat"] = lambda: FastChat(settings.fastchat, Path(place))
        for name, start in sides.items():
            fleet = start()
            try:
                outcomes, faults = under_faults(fleet, settings)
                whole = outcomes.pop("whole", 0)
                about = ", ".join(f"{count} {what}" for what, count in sorted(faults.items()))
                print(
                    f"{name}: {settings.requests} requests, {about}: {whole} whole, {sum(outcomes.values())} lost {dict(outcomes)}"
                )
                time.sleep(3)  # for the next leases
                left = {what: count for what, count in fleet.idle().items() if count}
                print(f"{name}: gauges that are not zero: {left or 'none'}")
                lost += (sum(outcomes.values()) + len(left)) if name == "vtools" else 0
            finally:
                fleet.close()
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
