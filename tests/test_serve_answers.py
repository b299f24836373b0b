"""What the server's answers hold: continued texts and ids, several at a time, log-probabilities, what was counted."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from engines import ask, greedy, made
from running import begun, wait_until
from serving import Server, body, value

from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer


def completed(server: Server, **changes: object) -> dict:
    asked = {"model": "short", "max_tokens": 8, "temperature": 0, **changes}
    reply = httpx2.post(f"{server.url}/completions", json=asked, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_completion_continues_a_text_or_its_ids_as_generate_does(server, short):
    tokenizer = load_tokenizer(str(short))
    ids = tokenizer.backend.encode("the cat sat").ids
    expected = greedy(short, ids, 8)
    by_text, by_ids = (completed(server, prompt=prompt, return_token_ids=True) for prompt in ("the cat sat", ids))
    (choice,) = by_text["choices"]
    assert choice["token_ids"] == expected and len(expected) == by_text["usage"]["completion_tokens"]
    assert choice["prompt_token_ids"] == ids
    assert choice["text"] == tokenizer.decode(ids + choice["token_ids"])[len(tokenizer.decode(ids)) :]
    assert by_ids["choices"] == by_text["choices"] and by_ids["usage"]["prompt_tokens"] == len(ids)
    streamed = ""
    with httpx2.stream(
        "POST",
        f"{server.url}/completions",
        json={"model": "short", "prompt": ids, "max_tokens": 8, "temperature": 0, "stream": True},
    ) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                streamed += json.loads(line[6:])["choices"][0]["text"]
    assert streamed == choice["text"]


def test_several_answers_are_those_of_one_seed_after_the_other(server):
    asked = {"temperature": 1.2, "max_tokens": 12}
    whole = server.post(body(**asked, n=3, seed=7)).json()
    alone = [server.post(body(**asked, seed=7 + number)).json()["choices"][0] for number in range(3)]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert [choice["message"] for choice in whole["choices"]] == [choice["message"] for choice in alone]
    assert len({choice["message"]["content"] for choice in whole["choices"]}) > 1
    client = server.client()
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="short", messages=ask("the cat"), stream=True, n=3, seed=7, **asked
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]


def test_more_answers_at_a_time_than_the_server_writes_are_refused(server):
    error = server.post(body(n=65)).json()["error"]
    assert (error["param"], error["message"]) == ("n", "n is 65, and the server writes 64 answers at a time")


def test_a_completion_that_names_no_length_takes_what_is_left_and_ids_must_be_the_models(server):
    for size, most in ((508, 4), (3, 16)):
        asked = {"prompt": [5] * size, "max_tokens": None, "temperature": 2.0}
        counts = [completed(server, **asked, seed=seed)["usage"]["completion_tokens"] for seed in range(5)]
        assert max(counts) == most
    reply = httpx2.post(f"{server.url}/completions", json={"model": "short", "prompt": [5, 399], "stream": True})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")


def test_log_probabilities_are_those_of_the_model(server, short):
    import torch

    from vtools.models.load import load_model

    tokenizer = load_tokenizer(str(short))
    prompt = load_template(None, tokenizer).prompt(ask("the cat"))
    found = server.post(body(logprobs=True, top_logprobs=3)).json()["choices"][0]["logprobs"]["content"]
    expected = [number for number in greedy(short, prompt, 8) if number != 2]
    with torch.no_grad():
        logits = load_model(str(short))(torch.tensor([prompt + expected])).logits[0].double().log_softmax(-1)
    assert len(found) == len(expected)
    for place, (one, number) in enumerate(zip(found, expected, strict=True), start=len(prompt) - 1):
        assert one["token"] == tokenizer.decode([number])
        assert math.isclose(one["logprob"], logits[place, number].item(), abs_tol=1e-4)
        best = logits[place].topk(3).values.tolist()
        for mine, expected_log in zip(one["top_logprobs"], best, strict=True):
            assert math.isclose(mine["logprob"], expected_log, abs_tol=1e-4)
    streamed: list = []
    for chunk in server.client().chat.completions.create(
        model="short", messages=ask("the cat"), max_tokens=8, temperature=0, stream=True, logprobs=True, top_logprobs=3
    ):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [one.logprob for one in streamed] == [one["logprob"] for one in found]
    plain = completed(server, prompt="the cat", logprobs=2)["choices"][0]["logprobs"]
    assert len(plain["tokens"]) == len(plain["token_logprobs"]) == len(plain["top_logprobs"])
    assert all(len(top) <= 2 for top in plain["top_logprobs"])


def test_an_answer_that_ends_at_once_has_the_log_probabilities_of_its_end(server):
    asked = body(logprobs=True, top_logprobs=3, temperature=2.0, max_tokens=1, n=64)
    replies = (server.post({**asked, "seed": 64 * turn}).json()["choices"] for turn in range(50))
    ended = next(choice for choices in replies for choice in choices if choice["finish_reason"] == "stop")
    (first,) = server.post(body(logprobs=True, top_logprobs=3, max_tokens=1)).json()["choices"]
    (end,), (other,) = ended["logprobs"]["content"], first["logprobs"]["content"]
    assert ended["message"]["content"] == "" and end["token"] == "<|im_end|>" != other["token"]
    assert end["logprob"] < other["logprob"]
    for of_end, of_other in zip(end["top_logprobs"], other["top_logprobs"], strict=True):  # in a batch and alone
        assert of_end == {**of_other, "logprob": pytest.approx(of_other["logprob"], abs=1e-5)}
    assert bytes(end["bytes"]) == b"<|im_end|>"


def test_a_reply_and_the_list_of_models_name_weights_and_template(server, short, tmp_path):
    (listed,) = httpx2.get(f"{server.url}/models").json()["data"]
    assert listed["max_model_len"] == 512
    assert server.post(body()).json()["system_fingerprint"] == listed["system_fingerprint"]
    other = Server(short, "--system", "the cat")
    changed = httpx2.get(f"{other.url}/models").json()["data"][0]["system_fingerprint"]
    assert other.end() == 0
    assert changed != listed["system_fingerprint"]
    assert changed.partition("-")[0] == listed["system_fingerprint"].partition("-")[0]  # the weights are the same


def test_what_happens_is_counted(server):
    before = [
        value(server, line)
        for line in (
            'vtools_tokens_total{kind="completion",model="short"}',
            'vtools_first_token_seconds_count{model="short"}',
        )
    ]
    used = server.post(body(max_tokens=5)).json()["usage"]["completion_tokens"]
    assert value(server, 'vtools_tokens_total{kind="completion",model="short"}') == before[0] + used
    assert value(server, 'vtools_first_token_seconds_count{model="short"}') == before[1] + 1
    assert value(server, 'vtools_requests_in_flight{model="short"}') == 0
    assert value(server, 'vtools_requests_waiting{model="short"}') == 0
    assert value(server, 'vtools_resume_total{model="short",reason="lost"}') == 0
    assert value(server, 'vtools_workers{model="short"}') == 1


def test_a_worker_that_is_asked_to_end_finishes_its_answers_and_another_takes_its_place(tmp_path):
    model = made(tmp_path / "model", context=4096, endless=True, seed=1)
    server = Server(f"short={model}")
    victim = server.pids()["short.0"]
    asked = body(max_tokens=300, stream=True)
    first = threading.Event()

    def read() -> tuple[int, str | None]:
        pieces, finish = 0, None
        with httpx2.stream("POST", f"{server.url}/chat/completions", json=asked, timeout=60) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    pieces += 1
                    first.set()
                    finish = json.loads(line[6:])["choices"][0]["finish_reason"]
        return pieces, finish

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(read)
        assert first.wait(60)
        os.kill(victim, signal.SIGTERM)
        assert future.result()[1] == "length"
    assert server.event()["resumes"] == 0
    wait_until(lambda: server.pids().get("short.0", victim) != victim)
    assert server.post(body(max_tokens=3)).status_code == 200
    assert server.end() == 0
    assert [event["state"] for event in server.workers] == ["up", "draining", "down", "up"]


@pytest.mark.slow
def test_workers_take_the_gpus_in_turn(short):
    server = Server(f"short={short}", "--workers", 3, CUDA_VISIBLE_DEVICES="4,GPU-6c5f")
    given = [
        dict(line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in line)
        for _, pid in sorted(server.pids().items())
    ]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in given] == ["4", "GPU-6c5f", "4"]
    assert server.end() == 0


def test_a_worker_whose_forward_pass_does_not_end_ends_itself(short, tmp_path):
    script = (
        "import time\n"
        "from vtools.inference import sampling\n"
        "from vtools.serve import worker\n"
        "worker.HUNG = 2.0\n"
        "sampling.draw = lambda *given: time.sleep(1000)\n"
        "worker.main()\n"
    )
    path = str(tmp_path / "socket")
    settings = {
        "model": str(short), "template": None, "system": None, "dtype": "auto", "threads": 1, "max_requests": 4,
        "socket": path, "grace": 5.0, "processes": 1, "parent": os.getpid(),
    }  # fmt: skip
    with begun([sys.executable, "-c", script, json.dumps(settings)]) as worker:
        assert b'"up"' in worker.stdout.readline()
        transport = httpx2.HTTPTransport(uds=path)
        asked = {"prompt": [5, 6], "max_tokens": 3, "temperature": 1.0, "seed": 1}
        with httpx2.Client(transport=transport, timeout=60) as client, pytest.raises(httpx2.TransportError):
            client.post("http://worker/v1/completions", json=asked)
        assert worker.wait(60) == 1
        assert b"a forward pass takes longer than 2 s" in worker.stderr.read()
