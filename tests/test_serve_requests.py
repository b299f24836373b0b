"""What the server does with a request before and after the answer: bodies, hosts, web pages, failures."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket

import httpx2
import pytest
from serving import Server, body

from vtools.inference.client import Token
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.serve import reply, upstream
from vtools.serve.admission import Admission
from vtools.serve.api import Api
from vtools.serve.keys import Keys
from vtools.serve.metrics import Metrics


def test_the_description_is_served(server):
    document = httpx2.get(server.url.removesuffix("/v1") + "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method in methods.keys() & {"get", "post"}:
            reply = httpx2.request(method, server.url.removesuffix("/v1") + path.replace("{name}", "short"))
            assert reply.status_code in (200, 415)  # a post without a body


def test_json_nested_ten_thousand_deep_is_a_400(server):
    for raw in (b"[" * 10_000, b'{"model": "short", "messages": %s%s}' % (b"[" * 10_000, b"]" * 10_000)):
        reply = server.post(raw, headers={"content-type": "application/json"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


def test_a_gzip_body_is_read_a_bomb_is_refused_and_other_codings_are_named(server):
    def post(content: bytes, coding: str) -> httpx2.Response:
        return server.post(content, headers={"content-type": "application/json", "content-encoding": coding})

    asked = json.dumps(body()).encode()
    assert post(gzip.compress(asked), "gzip").json()["choices"] == server.post(body()).json()["choices"]
    assert post(asked, "identity").status_code == 200
    assert post(gzip.compress(b" " * (64 << 20)), "gzip").status_code == 413
    assert post(asked, "gzip").status_code == 400
    other = post(asked, "br")
    assert (other.status_code, other.headers["accept-encoding"]) == (415, "gzip")
    assert "br is not supported" in other.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.2:8000", "[::1]"])
def test_every_name_of_this_machine_is_answered(server, host):
    assert httpx2.get(f"{server.url}/models", headers={"host": host}).status_code == 200


PAGE = "http://localhost:3000"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-own"}


def test_web_pages_of_allowed_origins_alone_may_ask_and_by_default_none(server, short):
    def asked(server: Server, origin: str, method: str = "OPTIONS") -> httpx2.Response:
        return httpx2.request(method, f"{server.url}/models", headers={"origin": origin, **PREFLIGHT})

    other = Server(short, "-q", "--host", "127.0.0.2", "--allow-origin", PAGE, "--allow-origin", "app://own")
    assert other.url.startswith("http://127.0.0.2:")
    for origin in (PAGE, "app://own"):
        before, reply = asked(other, origin), asked(other, origin, "GET")
        assert before.status_code == reply.status_code == 200
        assert before.headers["access-control-allow-origin"] == reply.headers["access-control-allow-origin"] == origin
        assert "x-own" in before.headers["access-control-allow-headers"]
    assert asked(other, "http://evil.example").status_code == 400
    for reply in (asked(other, "http://evil.example", "GET"), asked(server, PAGE), asked(server, PAGE, "GET")):
        assert "access-control-allow-origin" not in reply.headers
    assert asked(server, PAGE).status_code == 405
    assert other.end() == 0


class Slow(upstream.Worker):
    """A worker that is silent for a while."""

    async def stream(self, body: bytes):
        await asyncio.sleep(0.3)
        yield upstream.Some([Token(20)])
        await asyncio.sleep(0.3)
        yield upstream.Some([Token(21)], "length")


class Written(upstream.Worker):
    """A worker whose tokens are known."""

    async def stream(self, body: bytes):
        for number in range(20, 43):
            yield upstream.Some([Token(number)])
        yield upstream.Some([Token(43)], "length")


class Within:
    """The API over one worker, in this process."""

    def __init__(self, model: object, worker: type[upstream.Worker]) -> None:
        self.template = load_template(None, load_tokenizer(str(model)))
        self.events: list[dict] = []
        self._worker = worker

    async def ask(self, **changes: object) -> httpx2.Response:
        self.metrics = Metrics(["short"])
        model = upstream.Model("short", self.metrics)
        model.up(self._worker("short.0", 1, ""), 512, 400, "digest")
        own = {"admission": Admission(Keys({}), "x"), "origins": [], "most": 4, "metrics": self.metrics}
        api = Api({"short": (model, self.template)}, **own, event=self.events.append)
        transport = httpx2.ASGITransport(api.application)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost/v1") as client:
            return await client.post("/chat/completions", json=body(max_tokens=24, **changes))


def test_a_stream_that_fails_ends_in_an_error_event_and_its_own_event_says_500(short, capsys):
    api = Within(short, Written)
    decode, calls = api.template.tokenizer.decode, []

    def failing(ids, *rest):
        calls.append(ids)
        if len(calls) > 10:
            raise RuntimeError("this decoder broke")
        return decode(ids, *rest)

    api.template.tokenizer.decode = failing
    *_, last, nothing = asyncio.run(api.ask(stream=True)).text.split("\n\n")
    assert nothing == ""
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert [event["status"] for event in api.events] == [500]
    assert asyncio.run(api.ask()).json()["error"]["code"] == "internal_error"
    assert [(event["status"], event["finish"]) for event in api.events] == [(500, None)] * 2
    assert "this decoder broke" in capsys.readouterr().err
    assert asyncio.run(api.ask(model="x")).status_code == 404


def test_a_stream_that_waits_is_kept_open_by_comments_and_counted(short, monkeypatch):
    monkeypatch.setattr(reply, "KEEPALIVE", 0.1)
    api = Within(short, Slow)

    async def ask() -> tuple[str, bytes]:
        asked = asyncio.create_task(api.ask(stream=True))
        await asyncio.sleep(0.2)
        waiting = api.metrics.text()
        return (await asked).text, waiting

    text, waiting = asyncio.run(ask())
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert [block for block in blocks if block.startswith(":")] == [": keepalive"] * 4
    assert b'vtools_requests_waiting{model="short"} 1.0' in waiting
    assert b'vtools_requests_waiting{model="short"} 0.0' in api.metrics.text()


@pytest.mark.slow
def test_silent_connections_end_before_they_take_the_place_of_others(short):
    server = Server(short, "-q", limit=200)
    port = int(server.url.rpartition(":")[2].removesuffix("/v1"))
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(220)]
    silent[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
    silent[1].sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n")
    assert silent[1].recv(1000).startswith(b"HTTP/1.1 200")
    silent[1].sendall(b"x")  # of a body that nobody waits for
    assert server.post(body(), headers={"connection": "close"}).status_code == 200
    for one in silent:
        one.settimeout(60)
        while one.recv(1000):
            pass
        one.close()
    assert server.end() == 0
