"""The client for chat servers, against a real server on loopback that misbehaves on purpose."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable

import pytest

from vtools.inference import address, connect, retry
from vtools.inference.client import Sampling
from vtools.inference.endpoint import Endpoint, EndpointError
from vtools.process import Failure, UsageFailure

ASK = Sampling(max_tokens=16, temperature=0.0)


def hello(text: str = "hello") -> list[dict]:
    return [{"role": "user", "content": text}]


class Status(Exception):
    """Make the server answer with this status."""

    def __init__(self, code: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        self.code, self.body, self.headers = (
            code,
            body if body is not None else {"error": {"message": "no"}},
            headers or {},
        )


class Break(Exception):
    """Make the server close the connection in the middle of its answer."""


class Server:
    """An OpenAI-compatible server. `reply(messages, body)` gives the text, or several pieces, or raises Status or Break."""

    def __init__(self, reply: Callable, models: tuple[str, ...] = ("m",), port: int = 0) -> None:
        self.reply, self.models = reply, models
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in outer.models]})

            def send(self, code: int, body: object, headers: dict[str, str] | None = None) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append(body)
                    outer.times.append(time.monotonic())
                    outer.keys.append(self.headers.get("Authorization"))
                try:
                    answer = outer.reply(body["messages"], body)
                    if body.get("stream"):
                        self.stream([answer] if isinstance(answer, str) else answer)
                        return
                except Status as status:
                    self.send(status.code, status.body, status.headers)
                    return
                except Break:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [{"message"')
                    self.close_connection = True
                    return
                text, finish = answer if isinstance(answer, tuple) else (answer, "stop")
                message = {"role": "assistant", "content": text}
                usage = {"prompt_tokens": 3, "completion_tokens": len(text), "total_tokens": 3 + len(text)}
                choice = {"index": 0, "message": message, "finish_reason": finish}
                self.send(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "served-" + body["model"],
                                "choices": [choice], "usage": usage})  # fmt: skip

            def stream(self, pieces) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True

                def event(delta: dict, finish: str | None) -> None:
                    choice = {"index": 0, "delta": delta, "finish_reason": finish}
                    chunk = {
                        "id": "1",
                        "object": "chat.completion.chunk",
                        "created": 0,
                        "model": "m",
                        "choices": [choice],
                    }
                    self.wfile.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")
                    self.wfile.flush()

                try:
                    for piece in pieces:
                        event({"content": piece}, None)
                except Break:
                    return
                event({}, "stop")
                self.wfile.write(b"data: [DONE]\n\n")

        class Quiet(http.server.ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that was killed is part of the tests

        self._server = Quiet(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "VTOOLS_MODEL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def failing_first(*failures: Exception) -> Callable:
    """A reply that fails so often, then says what it was asked."""
    rest = list(failures)

    def reply(messages, body):
        if rest:
            raise rest.pop(0)
        return messages[-1]["content"]

    return reply


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_answer_comes_with_its_end_its_tokens_and_the_name_the_server_gave():
    with Server(lambda messages, body: ("hi", "length")) as server:
        answer = Endpoint(server.url, "m").complete(hello(), Sampling(16, 0.0, seed=3, stop=("###",)))
    assert (answer.text, answer.finish, answer.model) == ("hi", "length", "served-m")
    assert answer.usage == {"in": 3, "out": 2}
    assert server.bodies == [
        {"model": "m", "messages": hello(), "max_tokens": 16, "temperature": 0.0, "seed": 3, "stop": ["###"]}
    ]


def test_a_rate_limit_is_waited_out_as_long_as_the_server_asks():
    with Server(failing_first(Status(429, headers={"Retry-After": "1"}))) as server:
        assert Endpoint(server.url, "m").complete(hello(), ASK).text == "hello"
    first, second = server.times
    assert second - first >= 1


def test_a_server_error_is_tried_again():
    with Server(failing_first(Status(500), Status(503))) as server:
        assert Endpoint(server.url, "m").complete(hello(), ASK).text == "hello"
    assert len(server.bodies) == 3


def test_an_answer_that_breaks_off_is_asked_for_again():
    with Server(failing_first(Break())) as server:
        assert Endpoint(server.url, "m").complete(hello(), ASK).text == "hello"
    assert len(server.bodies) == 2


def test_a_server_that_hangs_is_asked_twice_and_no_more():
    done = threading.Event()

    def reply(messages, body):
        done.wait(30)
        return "too late"

    with Server(reply) as server:
        client = Endpoint(server.url, "m", timeout=0.3)
        with pytest.raises(EndpointError, match="no answer in time after 2 tries") as caught:
            client.complete(hello(), ASK)
        done.set()
    assert len(server.bodies) == 2
    assert not caught.value.fatal


def test_a_wait_of_hours_is_refused():
    with (
        Server(failing_first(Status(429, headers={"Retry-After": "7200"}))) as server,
        pytest.raises(EndpointError, match="HTTP 429") as caught,
    ):
        Endpoint(server.url, "m").complete(hello(), ASK)
    assert len(server.bodies) == 1
    assert caught.value.status == 429


def test_a_date_in_retry_after_is_understood():
    import email.utils

    later = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 55 < retry.after({"retry-after": later}) <= 60
    assert retry.after({"retry-after": "soon"}) is None


@pytest.mark.parametrize(("code", "advice"), [(401, "OPENAI_API_KEY"), (404, "--model")])
def test_an_error_that_every_question_would_meet_is_fatal_and_says_what_to_do(code, advice, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Server(failing_first(*[Status(code)] * 9)) as server, pytest.raises(EndpointError, match=advice) as caught:
        Endpoint(server.url, "m").complete(hello(), ASK)
    assert caught.value.fatal
    assert server.url in str(caught.value)
    assert len(server.bodies) == 1
    assert server.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in str(caught.value)


def test_a_bad_request_says_what_the_server_said():
    with (
        Server(failing_first(Status(400, {"error": {"message": "the context is\n4096 tokens"}}))) as server,
        pytest.raises(EndpointError, match="HTTP 400: the context is 4096 tokens") as caught,
    ):
        Endpoint(server.url, "m").complete(hello(), ASK)
    assert not caught.value.fatal


def test_a_page_of_html_is_no_answer():
    with (
        Server(failing_first(*[Status(200, b"<html>", {"Content-Type": "text/html"})] * 2)) as server,
        pytest.raises(EndpointError, match="not a chat completion"),
    ):
        Endpoint(server.url, "m", retries=1).complete(hello(), ASK)


def test_a_server_that_wants_max_completion_tokens_gets_it_and_one_without_seed_gets_none():
    def reply(messages, body):
        if "max_tokens" in body:
            raise Status(400, {"error": {"message": "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead."}})
        if "seed" in body:
            raise Status(422, {"detail": "seed: extra inputs are not permitted"})
        return "fine"

    with Server(reply) as server:
        client = Endpoint(server.url, "m")
        assert client.complete(hello(), Sampling(16, 0.0, seed=1)).text == "fine"
        assert client.complete(hello(), Sampling(16, 0.0, seed=1)).text == "fine"
    assert len(server.bodies) == 4
    assert server.bodies[-1]["max_completion_tokens"] == 16


def test_no_server_is_said_plainly():
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EndpointError, match="no server listens there; start it") as caught:
        Endpoint(url, "m", start_wait=0)
    assert caught.value.fatal


def test_a_server_that_is_just_starting_is_waited_for(capsys):
    port = free_port()
    servers = []
    timer = threading.Timer(1, lambda: servers.append(Server(lambda messages, body: "up", port=port)))
    timer.start()
    answer = Endpoint(f"http://127.0.0.1:{port}/v1", "m").complete(hello(), ASK)
    timer.join()
    servers[0].__exit__()
    assert answer.text == "up"
    assert capsys.readouterr().err.count("waiting for http://127.0.0.1:") == 1


def test_the_only_model_needs_no_name_and_several_are_listed():
    with Server(lambda messages, body: "x", models=("only",)) as server:
        assert Endpoint(server.url).model == "only"
    with (
        Server(lambda messages, body: "x", models=("base", "tuned")) as server,
        pytest.raises(UsageFailure, match="2 models; choose one with --model: base, tuned"),
    ):
        Endpoint(server.url)


def test_a_url_may_leave_out_v1_and_must_be_a_url():
    with Server(lambda messages, body: "x") as server:
        assert Endpoint(server.url.removesuffix("/v1"), "m").complete(hello(), ASK).text == "x"
    with pytest.raises(UsageFailure, match="not an http"):
        Endpoint("localhost:8000", "m")


def test_openai_itself_needs_a_key():
    with pytest.raises(Failure, match="OPENAI_API_KEY is not set"):
        Endpoint(address.OPENAI, "m")


def test_no_proxy_stands_between_this_machine_and_itself(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Server(lambda messages, body: "direct") as server:
        assert Endpoint(server.url, "m", retries=0).complete(hello(), ASK).text == "direct"


def test_where_a_model_is_looked_for(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    folder = str(tmp_path / "folder")
    assert connect.where(None) == connect.where("tuned") == address.SERVE
    assert connect.where(folder) is None
    assert connect.where(folder, "http://x/v1") == "http://x/v1"
    assert connect.where("owner/name") is None
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert connect.where("gpt") == address.OPENAI
    assert connect.where(None) == address.SERVE
    monkeypatch.setenv("OPENAI_BASE_URL", "http://y/v1")
    assert connect.where("owner/name") == connect.where(None) == "http://y/v1"
    assert connect.where(folder) is None


def test_a_stream_gives_every_piece_as_soon_as_it_is_there():
    taken = threading.Semaphore(0)

    def pieces():
        for piece in ("你", "好", "世界"):
            yield piece
            assert taken.acquire(timeout=30)  # the next comes only when this one has arrived

    with Server(lambda messages, body: pieces()) as server:
        got = []
        for piece in Endpoint(server.url, "m").stream(hello(), ASK):
            got.append(piece)
            taken.release()
    assert got == ["你", "好", "世界"]


def test_a_stream_that_breaks_off_is_an_error_and_one_that_fails_before_its_first_piece_is_tried_again():
    failures = iter([Status(500)])

    def pieces():
        yield "half"
        raise Break

    def reply(messages, body):
        for failure in failures:
            raise failure
        return pieces()

    with Server(reply) as server:
        got = []
        with pytest.raises(EndpointError, match="broke off"):
            got.extend(Endpoint(server.url, "m").stream(hello(), ASK))
    assert len(server.bodies) == 2
