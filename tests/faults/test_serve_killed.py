"""A server whose processes are killed, frozen or ended while they answer: what clients get is what they would have got."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2
import pytest
from engines import made
from running import ROOT, wait_until
from serving import Server, value

TOPICS = ("the cat", "one red bird", "seven green hills", "some cold rain", "a mat", "that flew over", "to find", "saw")
BROKEN = "the connection broke"


BREAK = """
import importlib.machinery, os, sys

class Breaking:  # the sampler fails once, when there is a file
    @staticmethod
    def find_spec(name, path, target=None):
        if name != "vtools.inference.sampling":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            draw = module.draw

            def failing(*given):
                if os.path.exists(os.environ["BREAK"]):
                    os.unlink(os.environ["BREAK"])
                    raise RuntimeError("the dice fell off the table")
                return draw(*given)

            module.draw = failing

        spec.loader.exec_module = exec_module
        return spec

if "BREAK" in os.environ:
    sys.meta_path.insert(0, Breaking)
"""


@dataclass
class Heard:
    """What a client got of one answer."""

    text: str = ""
    finish: str | None = None
    error: str | None = None
    pause: float = 0.0  # the longest between two pieces
    status: int = 0

    @property
    def end(self) -> tuple[str, str | None, str | None]:
        """How it has come out."""
        return self.text, self.finish, self.error


def streamed(url: str, body: dict, begun: Callable[[], None] = lambda: None) -> Heard:
    heard = Heard()
    before = None
    try:
        with httpx2.stream("POST", f"{url}/chat/completions", json={**body, "stream": True}, timeout=120) as response:
            heard.status = response.status_code
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    heard.error = event["error"]["message"]
                    continue
                choice = event["choices"][0]
                heard.finish = choice["finish_reason"]
                if piece := choice["delta"].get("content"):
                    now = time.monotonic()
                    heard.pause = max(heard.pause, now - before if before else 0.0)
                    before = now
                    heard.text += piece
                    begun()
    except httpx2.TransportError:
        heard.error = BROKEN
    return heard


def whole(url: str, body: dict) -> Heard:
    response = httpx2.post(f"{url}/chat/completions", json=body, timeout=120)
    if response.status_code != 200:
        return Heard(status=response.status_code, error=response.json()["error"]["message"])
    choice = response.json()["choices"][0]
    return Heard(choice["message"]["content"], choice["finish_reason"], status=200)


def requests(model: str, most: int) -> list[tuple[bool, dict]]:
    """16 streams and 8 plain requests, greedy and sampled."""
    made_ones = []
    for number in range(24):
        content = f"{TOPICS[number % 8]} {TOPICS[number // 8]}"
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": most}
        body |= {"temperature": 0} if number % 2 else {"temperature": 1.0, "seed": number}
        made_ones.append((number < 16, body))
    return made_ones


def under_way(server: Server, asked: list[tuple[bool, dict]], then: Callable[[], None]) -> list[Heard]:
    """What all clients got; `then` is done once half of the streams have begun."""
    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(len(asked)) as pool:
        futures = []
        for stream, body in asked:
            first = [begun.release]

            def once(first: list = first) -> None:
                if first:
                    first.pop()()

            futures.append(
                pool.submit(streamed, server.url, body, once) if stream else pool.submit(whole, server.url, body)
            )
        for _ in range(sum(stream for stream, _ in asked) // 2):
            assert begun.acquire(timeout=60)
        then()
        return [future.result() for future in futures]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return made(tmp_path_factory.mktemp("killed") / "model", context=4096, endless=True, seed=1)


def resumes(server: Server, number: int) -> int:
    """How often the last `number` answers were gone on with, by their events."""
    return sum(server.event()["resumes"] for _ in range(number))


def test_answers_outlive_the_worker_that_writes_them(model) -> None:
    server = Server(f"m={model}", "--workers", 2)
    asked = requests("m", 200)
    wanted = [heard.end for heard in under_way(server, asked, lambda: None)]
    assert resumes(server, 24) == 0
    for signum in (signal.SIGKILL, signal.SIGKILL):
        victim = server.pids()["m.0"]
        found = under_way(server, asked, lambda: os.kill(victim, signum))  # noqa: B023
        assert [heard.end for heard in found] == wanted
        assert resumes(server, 24) > 0
        wait_until(lambda: server.pids().get("m.0", victim) != victim)  # noqa: B023
    assert server.end() == 0
    ups = [event["state"] for event in server.workers if event["worker"] == "m.0"]
    assert ups == ["up", "down", "up", "down", "up"]


@pytest.mark.slow
def test_a_worker_that_freezes_is_left_and_started_again(model) -> None:
    server = Server(f"m={model}", "--workers", 2)
    asked = requests("m", 200)
    wanted = [heard.end for heard in under_way(server, asked, lambda: None)]
    assert resumes(server, 24) == 0
    victim = server.pids()["m.0"]
    found = under_way(server, asked, lambda: os.kill(victim, signal.SIGSTOP))
    assert [heard.end for heard in found] == wanted
    assert resumes(server, 24) > 0
    wait_until(lambda: server.pids().get("m.0", victim) != victim)
    assert server.end() == 0


@pytest.mark.slow
def test_the_only_worker_comes_back_and_goes_on(model) -> None:
    server = Server(f"m={model}")
    asked = requests("m", 200)[:4]
    wanted = [streamed(server.url, body).end for _, body in asked]
    with ThreadPoolExecutor(4) as pool:
        first = threading.Event()
        futures = [pool.submit(streamed, server.url, body, first.set) for _, body in asked]
        assert first.wait(60)
        os.kill(server.pids()["m.0"], signal.SIGKILL)
        found = [future.result() for future in futures]
    assert [heard.end for heard in found] == wanted
    assert server.end() == 0


@pytest.mark.slow
def test_an_edge_that_dies_under_load_five_times_is_back_and_the_workers_keep_their_weights(model) -> None:
    server = Server(f"m={model}", "--workers", 2)
    pids = server.pids()
    asked = [(True, body) for _, body in requests("m", 3000)[1:16:2]]  # greedy: they do not end by themselves
    for _ in range(5):
        (edge,) = [pid for pid in server.children() if pid not in pids.values()]

        def kill() -> None:
            os.kill(edge, signal.SIGKILL)  # noqa: B023
            began = time.monotonic()
            assert whole(server.url, requests("m", 8)[1][1]).status == 200  # the socket is open all the time
            print(f"answered after {time.monotonic() - began:.2f} s")

        found = under_way(server, asked, kill)
        # What had begun broke off, never as if it were finished; what still waited is answered by the next one.
        assert {(heard.finish, heard.error) for heard in found} <= {(None, BROKEN), ("length", None)}
        assert sum(heard.error == BROKEN for heard in found) >= len(found) // 2
        assert server.pids() == pids
    assert server.end() == 0


def test_what_still_runs_when_the_grace_is_over_ends_in_an_error(model) -> None:
    server = Server(f"m={model}", "--grace", 4)
    body = requests("m", 3800)[1][1]
    with ThreadPoolExecutor(2) as pool:
        first = threading.Event()
        future = pool.submit(streamed, server.url, body, first.set)
        plain = pool.submit(whole, server.url, body)
        assert first.wait(60)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        late = whole(server.url, body)
        assert late.status == 503 and "stopping" in late.error
        heard, other = future.result(), plain.result()
    assert heard.finish is None and "stopping" in heard.error
    assert other.status == 503 and "stopping" in other.error
    assert server.process.wait(60) == 0
    assert [server.event()["status"] for _ in range(3)] == [503, 503, 503]


@pytest.mark.slow
def test_a_worker_that_would_go_on_with_other_weights_is_not_used(tmp_path) -> None:
    folder = made(tmp_path / "model", seed=1)
    server = Server(f"m={folder}")
    body = requests("m", 8)[1][1]
    before = whole(server.url, body)
    kept = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((made(tmp_path / "other", seed=2) / "model.safetensors").read_bytes())
    os.kill(server.pids()["m.0"], signal.SIGKILL)
    wait_until(lambda: any(b"have changed; start the command again" in line for line in server.errors))
    (folder / "model.safetensors").write_bytes(kept)
    assert whole(server.url, body) == before  # it waited for them
    assert server.end() == 0


@pytest.mark.slow
def test_a_worker_whose_engine_fails_is_started_again_and_goes_on(tmp_path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BREAK)
    model = made(tmp_path / "model", context=4096, endless=True, seed=1)
    flag = tmp_path / "broken"
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    server = Server(f"m={model}", PYTHONPATH=paths, BREAK=str(flag))
    body = requests("m", 300)[0][1] | {"top_p": 0.3}  # so that it does not end by itself
    before = streamed(server.url, body)
    once = iter([flag.touch])
    found = streamed(server.url, body, lambda: next(once, lambda: None)())
    assert found.end == before.end and not flag.exists()
    assert [server.event()["resumes"] for _ in range(2)] == [0, 1]
    assert [event["state"] for event in server.workers] == ["up", "down", "up"]
    assert server.end() == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills_of_a_real_models_workers_lose_nothing(smollm2: str) -> None:
    server = Server(f"m={smollm2}", "--workers", 2)
    asked = requests("m", 48)
    wanted = [heard.end for heard in under_way(server, asked, lambda: None)]
    assert resumes(server, 24) == 0
    gone_on, pauses = 0, []

    def stopped(signum: int, name: str) -> tuple[int, float]:
        """How many answers went on elsewhere, and the longest pause."""
        victim = server.pids()[name]
        found = under_way(server, asked, lambda: os.kill(victim, signum))
        assert [heard.end for heard in found] == wanted
        wait_until(lambda: server.pids().get(name, victim) != victim)
        return resumes(server, 24), max(heard.pause for heard in found)

    for turn in range(10):
        went_on, pause = stopped(signal.SIGKILL, f"m.{turn % 2}")
        gone_on += went_on
        pauses.append(pause)
    print(f"answers gone on with: {gone_on}; longest pauses: {' '.join(f'{pause:.2f}' for pause in pauses)} s")
    assert gone_on >= 10
    went_on, pause = stopped(signal.SIGSTOP, "m.0")
    assert went_on > 0
    print(f"frozen: {pause:.2f} s")
    gone_on += went_on
    assert stopped(signal.SIGTERM, "m.1")[0] == 0
    counted = [
        value(server, f'vtools_resume_total{{model="m",reason="{why}"}}') for why in ("lost", "stall", "connect")
    ]
    assert sum(counted) == gone_on and min(counted[:2]) > 0
    assert server.end() == 0
