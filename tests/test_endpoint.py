"""The client for chat servers, against a real server on loopback that misbehaves on purpose."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import pytest
from chats import chat
from loopback import Break, Chat, Status, closed_port
from running import wait_until

from vtools.inference import address, connect, retry
from vtools.inference.client import Sampling
from vtools.inference.endpoint import Endpoint, EndpointError
from vtools.process import Failure, UsageFailure

ASK = Sampling(max_tokens=16, temperature=0.0)
HELLO = chat("hello")


def failing_first(*failures: Exception) -> Callable:
    """A reply that fails so often, then says what it was asked."""
    rest = list(failures)

    def reply(messages, body):
        if rest:
            raise rest.pop(0)
        return messages[-1]["content"]

    return reply


def test_an_answer_comes_with_its_end_its_tokens_and_the_name_the_server_gave():
    with Chat(lambda messages, body: ("hi", "length")) as server:
        answer = Endpoint(server.url, "m").complete(HELLO, Sampling(16, 0.0, seed=3, stop=("###",)))
    assert (answer.text, answer.finish, answer.model) == ("hi", "length", "served-m")
    assert answer.usage == {"in": 3, "out": 2}
    assert server.bodies == [
        {"model": "m", "messages": HELLO, "max_tokens": 16, "temperature": 0.0, "seed": 3, "stop": ["###"]}
    ]


def test_a_rate_limit_is_waited_out_as_long_as_the_server_asks():
    with Chat(failing_first(Status(429, headers={"Retry-After": "1"}))) as server:
        assert Endpoint(server.url, "m").complete(HELLO, ASK).text == "hello"
    first, second = server.asked
    assert second.time - first.time >= 1


def test_a_server_error_is_tried_again():
    with Chat(failing_first(Status(500), Status(503))) as server:
        assert Endpoint(server.url, "m").complete(HELLO, ASK).text == "hello"
    assert len(server.bodies) == 3


def test_an_answer_that_breaks_off_is_asked_for_again():
    with Chat(failing_first(Break())) as server:
        assert Endpoint(server.url, "m").complete(HELLO, ASK).text == "hello"
    assert len(server.bodies) == 2


def test_a_server_that_hangs_is_asked_again_for_a_minute_in_all_and_once_in_any_case():
    assert [retry.silences(timeout) for timeout in (600, 60, 20, 3)] == [1, 1, 3, 6]

    done = threading.Event()

    def reply(messages, body):
        done.wait(30)
        return "too late"

    with Chat(reply) as server:
        client = Endpoint(server.url, "m", timeout=0.3, retries=1)
        with pytest.raises(EndpointError, match="no answer in time after 2 tries") as caught:
            client.complete(HELLO, ASK)
        done.set()
    assert len(server.bodies) == 2
    assert not caught.value.fatal


def test_a_wait_of_hours_is_refused():
    with (
        Chat(failing_first(Status(429, headers={"Retry-After": "7200"}))) as server,
        pytest.raises(EndpointError, match="HTTP 429") as caught,
    ):
        Endpoint(server.url, "m").complete(HELLO, ASK)
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
    with Chat(failing_first(*[Status(code)] * 9)) as server, pytest.raises(EndpointError, match=advice) as caught:
        Endpoint(server.url, "m").complete(HELLO, ASK)
    assert caught.value.fatal
    assert server.url in str(caught.value)
    assert len(server.bodies) == 1
    assert [request.headers["Authorization"] for request in server.asked] == ["Bearer sk-secret"]
    assert "sk-secret" not in str(caught.value)


def test_a_bad_request_says_what_the_server_said():
    with (
        Chat(failing_first(Status(400, {"error": {"message": "the context is\n4096 tokens"}}))) as server,
        pytest.raises(EndpointError, match="HTTP 400: the context is 4096 tokens") as caught,
    ):
        Endpoint(server.url, "m").complete(HELLO, ASK)
    assert not caught.value.fatal


def test_a_page_of_html_is_no_answer():
    with (
        Chat(failing_first(*[Status(200, b"<html>", {"Content-Type": "text/html"})] * 2)) as server,
        pytest.raises(EndpointError, match="not a chat completion"),
    ):
        Endpoint(server.url, "m", retries=1).complete(HELLO, ASK)


def test_a_server_that_wants_max_completion_tokens_gets_it_and_one_without_seed_gets_none():
    def reply(messages, body):
        if "max_tokens" in body:
            raise Status(400, {"error": {"message": "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead."}})
        if "seed" in body:
            raise Status(422, {"detail": "seed: extra inputs are not permitted"})
        return "fine"

    with Chat(reply) as server:
        client = Endpoint(server.url, "m")
        assert client.complete(HELLO, Sampling(16, 0.0, seed=1)).text == "fine"
        assert client.complete(HELLO, Sampling(16, 0.0, seed=1)).text == "fine"
    assert len(server.bodies) == 4
    assert server.bodies[-1]["max_completion_tokens"] == 16


def test_no_server_is_said_plainly():
    with closed_port() as port, pytest.raises(EndpointError, match="no server listens there; start it") as caught:
        Endpoint(f"http://127.0.0.1:{port}/v1", "m", start_wait=0)
    assert caught.value.fatal


def test_a_server_that_is_just_starting_is_waited_for(capsys):
    said, servers = [], []

    def start() -> None:
        wait_until(lambda: said.append(capsys.readouterr().err) or any(said))
        servers.append(Chat(lambda messages, body: "up", port=port))

    with closed_port() as port:
        starting = threading.Thread(target=start)
        starting.start()
        answer = Endpoint(f"http://127.0.0.1:{port}/v1", "m").complete(HELLO, ASK)
        starting.join()
    servers[0].__exit__()
    assert answer.text == "up"
    assert "".join([*said, capsys.readouterr().err]).count("waiting for http://127.0.0.1:") == 1


def test_the_only_model_needs_no_name_and_several_are_listed():
    with Chat(lambda messages, body: "x", models=("only",)) as server:
        assert Endpoint(server.url).model == "only"
    with (
        Chat(lambda messages, body: "x", models=("base", "tuned")) as server,
        pytest.raises(UsageFailure, match="2 models; choose one with --model: base, tuned"),
    ):
        Endpoint(server.url)


def test_a_url_may_leave_out_v1_and_must_be_a_url():
    with Chat(lambda messages, body: "x") as server:
        assert Endpoint(server.url.removesuffix("/v1"), "m").complete(HELLO, ASK).text == "x"
    with pytest.raises(UsageFailure, match="not an http"):
        Endpoint("localhost:8000", "m")


def test_openai_itself_needs_a_key():
    with pytest.raises(Failure, match="OPENAI_API_KEY is not set"):
        Endpoint(address.OPENAI, "m")


def test_no_proxy_stands_between_this_machine_and_itself(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Chat(lambda messages, body: "direct") as server:
        assert Endpoint(server.url, "m", retries=0).complete(HELLO, ASK).text == "direct"


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

    with Chat(lambda messages, body: pieces()) as server:
        got = []
        for piece in Endpoint(server.url, "m").stream(HELLO, ASK):
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

    with Chat(reply) as server:
        got = []
        with pytest.raises(EndpointError, match="broke off"):
            got.extend(Endpoint(server.url, "m").stream(HELLO, ASK))
    assert len(server.bodies) == 2


def completion(message: object, **more: object) -> dict:
    """A body whose only choice has this message."""
    return {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **more}


def test_an_answer_in_parts_and_a_usage_in_texts_are_read():
    parts = [{"type": "text", "text": "one "}, {"type": "reasoning"}, {"type": "text", "text": "two"}]
    body = completion({"role": "assistant", "content": parts}, usage={"prompt_tokens": "7", "completion_tokens": "2"})
    with Chat(failing_first(Status(200, body))) as server:
        answer = Endpoint(server.url, "m").complete(HELLO, ASK)
    assert (answer.text, answer.usage) == ("one two", {"in": 7, "out": 2})


@pytest.mark.parametrize(
    ("body", "words", "fatal", "calls"),
    [
        (b"<html><head><style>p{}</style></head><body><p>Sign in\n to go on</p></body></html>", "Sign in to go on", True, 1),
        (b'{"status": "ok"}', '{"status": "ok"}; is this the URL of an OpenAI-compatible server', True, 1),
        (b"pong", "pong; is this the URL", True, 1),
        ({"error": {"message": "Insufficient credits", "code": 402}}, "HTTP 402: Insufficient credits", True, 1),
        ({"error": {"message": "no such key", "code": 401}}, "HTTP 401: no such key", True, 1),
        ({"error": {"message": "Quota gone", "type": "insufficient_quota"}}, "Quota gone", True, 1),
        ({"error": "the model is not loaded"}, "the model is not loaded", False, 1),
        ({"choices": []}, "no choices", False, 2),
        ({"error": {"message": "overloaded", "code": 503}}, "HTTP 503 after 3 tries: overloaded", False, 3),
    ],
)  # fmt: skip
def test_a_reply_with_status_200_that_is_no_answer_is_told_in_the_servers_words(body, words, fatal, calls):
    with (
        Chat(failing_first(*[Status(200, body)] * 9)) as server,
        pytest.raises(EndpointError, match=re.escape(words)) as caught,
    ):
        Endpoint(server.url, "m", retries=2).complete(HELLO, ASK)
    assert caught.value.fatal == fatal and "\n" not in str(caught.value)
    assert len(server.bodies) == calls


@pytest.mark.parametrize(
    "status",
    [
        Status(402, {"error": {"message": "pay first"}}),
        Status(429, {"error": {"message": "You exceeded your current quota, check your plan", "code": "x"}}),
        Status(429, {"error": {"message": "no", "type": "insufficient_quota", "code": "insufficient_quota"}}),
    ],
)
def test_an_account_without_money_is_fatal_at_once(status):
    with (
        Chat(failing_first(*[status] * 9)) as server,
        pytest.raises(EndpointError, match="check the account") as caught,
    ):
        Endpoint(server.url, "m").complete(HELLO, ASK)
    assert caught.value.fatal and len(server.bodies) == 1


def test_a_quota_per_minute_is_waited_out():
    told = {"error": {"message": "exceeded your quota of requests per minute"}}
    with Chat(failing_first(Status(429, told, {"Retry-After": "0"}))) as server:
        assert Endpoint(server.url, "m").complete(HELLO, ASK).text == "hello"


@pytest.mark.parametrize(
    ("parameter", "error"),
    [
        ("temperature", {"message": "Unsupported value: 'temperature' does not support 0 with this model.", "param": "temperature"}),
        ("temperature", {"message": "temperature is not supported by this model"}),
        ("seed", {"message": "Unknown parameter: 'seed'"}),
        ("seed", {"message": "Extra inputs are not permitted: seed"}),
    ],
)  # fmt: skip
def test_a_parameter_that_the_model_refuses_is_left_out_and_said_once(parameter, error, capsys):
    def reply(messages, body):
        if parameter in body:
            raise Status(400, {"error": error})
        return "fine"

    with Chat(reply) as server:
        client = Endpoint(server.url, "m")
        for _ in range(2):
            assert client.complete(HELLO, Sampling(16, 0.0, seed=1)).text == "fine"
    assert len(server.bodies) == 3
    assert {"temperature", "seed"} - server.bodies[-1].keys() == {parameter}
    assert capsys.readouterr().err.count(f"asked without {parameter}, which m refuses") == 1


@pytest.mark.parametrize(
    "words", ["how to plant a seed is not a question for me", "the seedling was not found", "too long"]
)
def test_a_refusal_that_only_mentions_the_seed_keeps_it(words):
    with Chat(failing_first(Status(400, {"error": {"message": words}}))) as server:
        client = Endpoint(server.url, "m")
        with pytest.raises(EndpointError, match=words):
            client.complete(HELLO, Sampling(16, 0.0, seed=1))
        client.complete(HELLO, Sampling(16, 0.0, seed=1))
    assert server.bodies[-1]["seed"] == 1


def test_what_a_server_says_cannot_steer_the_terminal(capsys):
    with (
        Chat(failing_first(Status(400, {"error": {"message": "no\x1b]0;pwned\x07 \u202etxet"}}))) as server,
        pytest.raises(EndpointError) as caught,
    ):
        Endpoint(server.url, "m").complete(HELLO, ASK)
    assert "no\\u001b]0;pwned\\u0007 \\u202etxet" in str(caught.value)
    refused = Status(400, {"error": {"message": "seed is not supported"}})
    with Chat(failing_first(refused), models=("m\x1b[2J",)) as server:
        Endpoint(server.url).complete(HELLO, Sampling(16, 0.0, seed=1))
    assert "asked without seed, which m\\u001b[2J refuses" in capsys.readouterr().err


def test_a_model_that_is_served_here_is_asked_here_though_a_key_is_exported(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Chat(lambda messages, body: "here", models=("tuned",)) as server:
        monkeypatch.setattr(address, "SERVE", server.url)
        assert connect.where("tuned") == server.url
        assert connect.where("gpt-4.1") == address.OPENAI
        assert not any("Authorization" in request.headers for request in server.requests)
        client, name = connect.connect(connect.Target("tuned"))
        assert client.complete(HELLO, ASK).text == "here" and name == "tuned"
    assert f"asking {server.url} for tuned" in capsys.readouterr().err


def test_a_stream_of_a_server_that_sends_a_page_is_told_in_its_words():
    page = Status(200, b"<html>Down for repairs</html>", {"Content-Type": "text/html"})
    with Chat(failing_first(page)) as server, pytest.raises(EndpointError, match="Down for repairs"):
        next(Endpoint(server.url, "m").stream(HELLO, ASK))
