"""The server as its users meet it: a process, its port, its stdout, and the openai library."""

from __future__ import annotations

import concurrent.futures
import json
import re
import signal
import socket

import httpx2
import openai
import pytest
import running
import tiny
from engines import ask, greedy, made
from running import run, wait_until
from serving import Server, body

KEY = "a key for tests"


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
        ({"messages": [*ask("a"), {"role": "system", "content": "b"}]}, 400, "messages[1].role"),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"max_tokens": 5000}, 400, "max_tokens"),
        ({"messages": ask("the cat " * 600), "max_tokens": None}, 400, "messages"),
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
    extra = {
        "n": 1,
        "presence_penalty": 0.0,
        "logprobs": False,
        "user": "someone",
        "tools": [],
        "stop": None,
        "top_k": -1,
    }
    message = {"role": "user", "content": [{"type": "text", "text": "the cat"}], "name": "someone", "annotations": []}
    reply = server.post(body(**extra, messages=[message]))
    assert reply.json()["choices"] == server.post(body()).json()["choices"]


def test_an_assistant_message_at_the_end_is_continued(server, short):
    from vtools.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(short))
    asked = tokenizer.backend.encode("<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\none red").ids
    expected = tokenizer.decode(greedy(short, asked, 8))
    messages = [*ask("the cat"), {"role": "assistant", "content": "one red"}]
    reply = server.post(body(messages=messages)).json()
    assert reply["choices"][0]["message"]["content"] == expected
    assert reply["usage"]["prompt_tokens"] == len(asked)
    blank = server.post(body(messages=[*ask("the cat"), {"role": "assistant", "content": None}])).json()
    assert blank["choices"][0]["message"]["content"] == wanted(short, "the cat", 8)


def test_an_answer_of_at_most_more_tokens_than_fit_is_cut_by_chat_and_refused_by_serve(server, short):
    error = server.post(body(max_tokens=5000)).json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert " 5000," in error["message"] and " 512:" in error["message"]
    question = '{"prompt": "the cat"}'
    ask_it = ("chat", "--temperature", 0, "--max-tokens", 5000)
    here = running.good(*ask_it, "--model", short, stdin=question)
    there = running.good(*ask_it, "--model", "short", "--base-url", server.url, stdin=question)
    assert here[0]["turns"] == there[0]["turns"]
    assert here[0]["usage"] == there[0]["usage"]


def test_a_completion_is_checked(server):
    asked = {"model": "short", "prompt": "the cat"}
    for changes, named in (({"echo": True}, "echo"), ({"best_of": 2}, "best_of"), ({"prompt": ""}, "prompt")):
        reply = httpx2.post(f"{server.url}/completions", json=asked | changes)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, named)
    assert httpx2.post(f"{server.url}/completions", json=asked | {"model": "x"}).status_code == 404


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(server):
    reply = server.post(body(messages=ask("the cat " * 600)))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert re.search(r"\d{3,} tokens .* 512", error["message"])
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
    assert "Content-Type: application/json" in replies[415].json()["error"]["message"]
    assert replies[405].headers["allow"] == "POST"


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
    server = Server(f"talker={long}", "--host", "0.0.0.0", "--max-requests", "1", "-q", VTOOLS_API_KEY=f"{KEY}\n")
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    for wrong in ("another key", KEY[:-1], "schlüssel"):
        header = {"authorization": f"Bearer {wrong}".encode()}
        reply = server.post(body(model="talker"), headers=header)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        server.client("another key").models.list()
    said = running.bad("chat", "--base-url", server.url, stdin="", env={"OPENAI_API_KEY": "another key"})
    assert "HTTP 401" in said and said.endswith("; check OPENAI_API_KEY\n")
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
        (["--allow-origin", "localhost:3000"], "not an origin"),
        (["name="], "not a model; write MODEL or NAME=MODEL"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
    ],
)
def test_a_command_line_that_cannot_be_carried_out_exits_2(short, arguments, said):
    arguments = [argument.format(model=short) for argument in arguments]
    done = run("serve", short, *arguments, "--port", 0, env={"VTOOLS_API_KEY": ""})
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.errors and done.errors.count("\n") == 1


def test_a_server_whose_events_have_lost_their_reader_goes_on_serving(short):
    with running.start("serve", short, "--port", 0, "-q") as process:
        url = json.loads(process.stdout.readline())["url"]
        process.stdout.close()
        for _ in range(3):
            assert httpx2.post(f"{url}/chat/completions", json=body(), timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


@pytest.mark.slow
def test_a_server_whose_events_nobody_reads_goes_on_serving(short):
    with running.start("serve", short, "--port", 0, "-q", pipesize=4096) as process:
        url = next(event["url"] for event in map(json.loads, process.stdout) if event["event"] == "ready")
        with httpx2.Client(base_url=url, timeout=60) as client:
            for _ in range(60):  # their events are more than the pipe holds
                assert client.post("/chat/completions", json=body(model="vicuna" * 20)).status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert len(process.stdout.read().splitlines()) <= 60
