"""The server under load: the same answers to the last bit, and nothing left behind by clients that go away."""

from __future__ import annotations

import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from engines import made
from running import wait_until
from serving import Server, value


def strict() -> bool:
    """Whether the processor's matrix products can be made to repeat."""
    import torch

    return torch.backends.mkl.is_available() and "GenuineIntel" in Path("/proc/cpuinfo").read_text()


def asked(number: int, most: int) -> dict:
    """A completion of its own, greedy or sampled, short or long."""
    draw = random.Random(number)
    sampling = {"temperature": draw.choice((0, 0.7, 1.3)), "top_p": draw.choice((0.9, 1)), "seed": number}
    prompt = [draw.randrange(5, 300) for _ in range(draw.choice((3, 20, 70, 200, 600)))]
    return {"model": "m", "prompt": prompt, "max_tokens": draw.randint(1, most), **sampling, "logprobs": 2}


def answered(url: str, body: dict, streamed: bool) -> tuple[str, list[float], list[dict], str]:
    """The text of a completion, all of its log-probabilities, and its end."""
    if not streamed:
        (choice,) = httpx2.post(f"{url}/completions", json=body, timeout=120).raise_for_status().json()["choices"]
        logs = choice["logprobs"]
        return choice["text"], logs["token_logprobs"], logs["top_logprobs"], choice["finish_reason"]
    text, logprobs, tops, finish = "", [], [], ""
    with httpx2.stream("POST", f"{url}/completions", json={**body, "stream": True}, timeout=120) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                text += choice["text"]
                logprobs += choice["logprobs"]["token_logprobs"]
                tops += choice["logprobs"]["top_logprobs"]
                finish = choice["finish_reason"]
    return text, logprobs, tops, finish


def check_repeated(model: Path | str, kinds: int, times: int, most: int) -> None:
    """Ask each kind alone and then all of them, several times, at random among others."""
    if not strict():
        pytest.skip("matrix products repeat on Intel's processors alone")
    server = Server(f"m={model}", "-q")
    alone = [answered(server.url, asked(number, most), False) for number in range(kinds)]
    order = [number for number in range(kinds) for _ in range(times)]
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(
            lambda each: answered(server.url, asked(each[1], most), each[0] % 2 == 0), list(enumerate(order))
        )
        different = sum(alone[number] != one for number, one in zip(order, found, strict=True))
    assert different == 0, f"{different} of {len(order)} differ from the answer given alone"
    assert server.end() == 0


def test_an_answer_has_the_same_bits_whoever_else_is_served(tmp_path):
    check_repeated(made(tmp_path / "model", context=2048), kinds=30, times=5, most=12)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_thousand_answers_of_a_real_model_have_the_same_bits_whoever_else_is_served(smollm2):
    check_repeated(smollm2, kinds=100, times=10, most=12)


def resident(pid: int) -> int:
    """The memory of a process, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1000


def test_fifty_clients_that_leave_amid_their_answers_leave_nothing_behind(tmp_path):
    server = Server(f"m={made(tmp_path / 'model', context=4096, endless=True)}", "-q")
    port = int(server.url.rpartition(":")[2].removesuffix("/v1"))
    body = json.dumps({"model": "m", "prompt": [5, 6, 7], "max_tokens": 4000, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"

    def leave(rounds: int) -> None:
        for _ in range(rounds):
            clients = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(50)]
            for client in clients:
                client.sendall(head.encode() + body)
            for client in clients:
                assert client.recv(100)
            wait_until(lambda: value(server, 'vtools_requests_waiting{model="m"}') == 0)  # all are being answered
            for client in clients:
                client.close()
            wait_until(lambda: server.health()["in_flight"] == 0)

    leave(2)
    before = {pid: resident(pid) for pid in server.children()}
    leave(4)
    assert {pid: resident(pid) - memory for pid, memory in before.items() if resident(pid) - memory > 5} == {}
    for gauge in ("requests_in_flight", "requests_waiting"):
        assert value(server, f'vtools_{gauge}{{model="m"}}') == 0
    assert answered(server.url, asked(1, 3), False)[3] == "length"  # 200,000 tokens would be before it
    assert server.end() == 0
