"""The server as its users meet it: a process, its port, its stdout, and the openai library."""

from __future__ import annotations

import concurrent.futures
import json
import queue
import signal
import socket
import threading

import httpx2
import openai
import pytest
import running
import tiny
from engines import ask, greedy, made
from running import run, wait_until

KEY = "a key for tests"


class Server:
    """`vtools serve` as a process; its events are collected as they are written."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self._running = running.start("serve", *arguments, "--port", 0, env=environment)
        self.process = self._running.__enter__()
        self.lines: list[bytes] = []
        self.errors: list[bytes] = []
        self._events: queue.Queue = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._listen, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.ready = self.event()
        self.url = self.ready["url"]

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            self._events.put(json.loads(line))

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


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def short(place):
    return made(place / "short")


@pytest.fixture(scope="module")
def long(place):
    """A model that goes on for 16,000 tokens, which takes far longer than any test."""
    return made(place / "long", context=16384, endless=True, seed=1)


@pytest.fixture(scope="module")
def server(short, long):
    started = Server(short, f"talker={long}")
    yield started
    assert started.end() == 0


@pytest.fixture(autouse=True)
def fresh(request):
    if "server" in request.fixturenames:
        request.getfixturevalue("server").forget()


def body(**changes: object) -> dict:
    return {"model": "short", "messages": ask("the cat"), "max_tokens": 8, "temperature": 0, **changes}


def wanted(folder, text: str, most: int) -> str:
    from vtools.models.template import load_template
    from vtools.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    ids = greedy(folder, load_template(None, tokenizer).prompt(ask(text)), most)
    return tokenizer.decode(ids).rstrip("\ufffd" if len(ids) == most else "")  # a cut answer ends in whole characters


def test_the_openai_library_gets_the_models_answer_whole_and_streamed(server, short):
    client = server.client()
    options = {"model": "short", "messages": ask("the cat"), "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].message.content == wanted(short, "the cat", 24)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 24
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 24

    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 10
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_is_server_sent_events_that_end_in_done(server):
    reply = server.post(body(stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events[:-2])


def test_two_models_answer_side_by_side_each_as_itself(server, short, long):
    client = server.client()
    assert [model.id for model in client.models.list()] == ["short", "talker"] == server.ready["models"]
    assert client.models.retrieve("talker").id == "talker"
    texts = [f"{word} cat" for word in tiny.WORDS[:8]]
    jobs = [(name, text) for text in texts for name in ("short", "talker")]

    def complete(job):
        options = {"messages": ask(job[1]), "max_tokens": 16, "temperature": 0}
        return client.chat.completions.create(model=job[0], **options).choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        answers = dict(zip(jobs, pool.map(complete, jobs), strict=True))
    for name, folder in (("short", short), ("talker", long)):
        for text in texts[::4]:
            assert answers[name, text] == wanted(folder, text, 16)


def test_a_seed_repeats_a_sampled_answer_and_a_stop_string_ends_one(server):
    client = server.client()
    options = {"model": "talker", "messages": ask("the cat"), "max_completion_tokens": 40, "temperature": 1.5}
    first, second, other = (
        client.chat.completions.create(**options, top_p=0.95, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    )
    assert first == second != other
    stopped = client.chat.completions.create(**options, top_p=0.95, seed=1, stop=[first[10:13]]).choices[0]
    assert stopped.message.content == first[: first.find(first[10:13])]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize(
    ("changes", "status", "named"),
    [
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"n": 2}, 400, "n"),
        ({"n": True}, 400, "n"),
        ({"top_k": 5}, 400, "top_k"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, 400, "stream_options.x"),
        ({"stream": 1}, 400, "stream"),
        ({"temperature": -0.1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 1.1}, 400, "top_p"),
        ({"seed": 1.5}, 400, "seed"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"max_tokens": 8, "max_completion_tokens": 9}, 400, "max_tokens"),
        ({"stop": ["a", ""]}, 400, "stop"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, 400, "messages[0].name"),
        ({"messages": [*ask("a"), {"role": "assistant", "content": "b"}]}, 400, "messages[1].role"),
        ({"max_tokens": 5000}, 400, "messages"),
        ({"model": "vicuna"}, 404, "model"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_by_name(server, changes, status, named):
    reply = server.post(body(**changes))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (status, named, "invalid_request_error")
    assert named.partition("[")[0] in error["message"] or named in ("messages", "model")
    assert server.event()["status"] == status


def test_what_asks_for_nothing_is_accepted(server):
    extra = {"n": 1, "presence_penalty": 0.0, "logprobs": False, "user": "someone", "tools": None, "stop": None}
    assert (
        server.post(
            body(**extra, messages=[{"role": "user", "content": [{"type": "text", "text": "the cat"}]}])
        ).json()["choices"]
        == (server.post(body()).json()["choices"])
    )


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(server):
    reply = server.post(body(messages=ask("the cat " * 600)))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert " 8: " in error["message"] and " 512" in error["message"]
    assert server.post(body(max_tokens=5000)).json()["error"]["code"] == "context_length_exceeded"
    assert server.post(body()).status_code == 200


def test_broken_requests_get_the_right_status_and_an_error_object(server):
    replies = {
        400: server.post(b"{", headers={"content-type": "application/json"}),
        413: server.post(body(messages=ask("a" * (1 << 21)))),
        415: server.post(b"{}", headers={"content-type": "text/plain"}),
        404: httpx2.get(f"{server.url}/embeddings"),
        405: httpx2.get(f"{server.url}/chat/completions"),
        403: httpx2.get(f"{server.url}/models", headers={"host": "evil.example"}),
    }
    for status, reply in replies.items():
        assert reply.status_code == status
        assert reply.json()["error"]["message"]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_ends_its_generation(server, streamed):
    request = body(model="talker", max_tokens=16000, stream=streamed)
    with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))) as raw:
        content = json.dumps(request).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:1\r\nContent-Length: {len(content)}\r\n"
        raw.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
        if streamed:
            assert raw.recv(10)
        else:
            wait_until(lambda: server.health()["in_flight"] == 1)
    event = server.event()
    assert (event["status"], event["finish"]) == (499, None)
    assert event["completion_tokens"] < 16000
    wait_until(lambda: server.health()["in_flight"] == 0)
    assert server.post(body()).status_code == 200


def test_stdout_has_one_event_a_request_and_none_of_its_text(server):
    server.post(body(messages=ask("seven green hills")))
    event = server.event()
    assert {key: event[key] for key in ("event", "model", "status", "finish", "completion_tokens")} == {
        "event": "request", "model": "short", "status": 200, "finish": "length", "completion_tokens": 8,
    }  # fmt: skip
    assert event["prompt_tokens"] > 0 and event["ms"] >= 0
    assert not any(b"green" in line for line in server.lines)
    assert len(server.errors) == 1 and server.url.encode() in server.errors[0]


def test_a_full_queue_answers_429_and_every_other_address_needs_the_key(long):
    server = Server(f"talker={long}", "--host", "0.0.0.0", "--max-requests", "1", "-q", VTOOLS_API_KEY=KEY)
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    for wrong in ("another key", KEY[:-1], "schlüssel"):
        header = {"authorization": f"Bearer {wrong}".encode()}
        reply = server.post(body(model="talker"), headers=header)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        server.client("another key").models.list()
    client = server.client(KEY)
    options = {"model": "talker", "messages": ask("the cat")}
    stream = client.chat.completions.create(**options, stream=True, max_tokens=16000)
    next(stream)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**options, max_tokens=1)
    assert refused.value.response.headers["retry-after"] == "1"
    stream.close()
    wait_until(lambda: server.health()["in_flight"] == 0)
    assert client.chat.completions.create(**options, max_tokens=1).usage.completion_tokens == 1
    assert server.end() == 0
    assert server.errors == []


def test_a_signal_in_the_first_moment_ends_it_in_silence(long):
    for _ in range(3):
        server = Server(f"talker={long}", "-q")
        assert server.end() == 0
        assert server.errors == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_lets_requests_finish_and_takes_no_new_ones(long, signum, code):
    server = Server(f"talker={long}")
    options = {"model": "talker", "messages": ask("the cat"), "temperature": 0, "stream": True}
    stream = server.client().chat.completions.create(**options, max_tokens=600)
    chunks = [next(stream), next(stream)]
    server.process.send_signal(signum)

    def closed() -> bool:
        try:
            server.health()
        except httpx2.HTTPError:
            return True
        return False

    wait_until(closed)
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == wanted(long, "the cat", 600)
    assert server.process.wait(60) == code
    assert server.event()["completion_tokens"] == 600


def test_a_busy_port_is_one_clear_line(short):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", short, "--port", port)
    assert (done.returncode, done.stdout) == (1, b"")
    assert (
        done.errors
        == f"vtools serve: port {port} on 127.0.0.1 is busy; choose another with --port (0 takes a free one)\n"
    )


def test_a_model_that_is_not_there_fails_before_the_port_opens(short, tmp_path):
    (tmp_path / "empty").mkdir()
    missing, empty = (run("serve", short, f"tuned={tmp_path}/{name}", "--port", 0) for name in ("missing", "empty"))
    assert missing.errors.startswith(f"vtools serve: {tmp_path}/missing: no such folder")
    for done in (missing, empty):
        assert (done.returncode, done.stdout, done.errors.count("\n")) == (1, b"", 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "set VTOOLS_API_KEY"),
        (["{model}"], "another model is named short already"),
        (["name="], "not a model; write MODEL or NAME=MODEL"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
    ],
)
def test_a_command_line_that_cannot_be_carried_out_exits_2(short, arguments, said):
    arguments = [argument.format(model=short) for argument in arguments]
    done = run("serve", short, *arguments, "--port", 0, env={"VTOOLS_API_KEY": ""})
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.errors and done.errors.count("\n") == 1


def test_a_server_whose_events_nobody_reads_goes_on_serving(short):
    with running.start("serve", short, "--port", 0, "-q", pipesize=4096) as process:
        url = json.loads(process.stdout.readline())["url"]
        with httpx2.Client(base_url=url, timeout=60) as client:
            for _ in range(60):  # their events are more than the pipe holds
                assert client.post("/chat/completions", json=body(model="vicuna" * 20)).status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert len(process.stdout.read().splitlines()) <= 60
