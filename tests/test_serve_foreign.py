"""Engines of others behind an edge: their models by their own names or ours, and answers that go on at another."""

from __future__ import annotations

import http.server
import json
import threading

import httpx2
import pytest
from running import wait_until
from serving import Server, body, states


class Engine:
    """A server of the OpenAI API that writes numbered words, and breaks off after some of them if it is told to."""

    def __init__(self) -> None:
        self.breaks_after: int | None = None
        self.asked: list[dict] = []
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(json.dumps({"data": [{"id": "their-model"}]}).encode())

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if not asked.get("stream"):
                    self._send(json.dumps({"choices": [{"message": {"content": "0 "}}]}).encode())
                    return
                engine.asked.append(asked)
                last = asked["messages"][-1]
                begun = len(last["content"].split()) if last["role"] == "assistant" else 0
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                for number in range(begun, begun + asked["max_tokens"]):
                    if engine.breaks_after == number:
                        return
                    self._event({"choices": [{"delta": {"content": f"{number} "}, "finish_reason": None}]})
                self._event({"choices": [{"delta": {}, "finish_reason": "length"}]})
                self._event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": asked["max_tokens"]}})
                self.wfile.write(b"data: [DONE]\n\n")

            def _event(self, value: dict) -> None:
                self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

            def _send(self, content: bytes) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *about: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def engines():
    pair = [Engine(), Engine()]
    yield pair
    for engine in pair:
        engine.close()


def test_an_engine_is_asked_under_our_name_and_another_goes_on_where_it_breaks_off(engines):
    edge = Server(*[f"ours={engine.url}" for engine in engines], "http://127.0.0.1:9/v1")
    wait_until(lambda: list(states(edge).values()).count("ready") == 2)
    assert [model["id"] for model in httpx2.get(f"{edge.url}/models").json()["data"]] == ["ours"]
    asked = body(model="ours", max_tokens=12)
    found = edge.post(asked, headers={"x-own": "mine"}).json()
    assert found["choices"][0]["message"]["content"] == " ".join(map(str, range(12))) + " "
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
    (first,) = [engine for engine in engines if engine.asked]
    first.breaks_after = 5
    with edge.client().chat.completions.create(**asked, stream=True) as chunks:
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == found["choices"][0]["message"]["content"]
    (other,) = [engine for engine in engines if engine is not first]
    assert other.asked[-1]["messages"][-1] == {"role": "assistant", "content": "0 1 2 3 4 "}
    assert other.asked[-1]["continue_final_message"] and other.asked[-1]["max_tokens"] == 7
    assert [event["resumes"] for event in (edge.event(), edge.event())] == [0, 1]
    refused = edge.post({**asked, "logprobs": True}).json()["error"]
    assert refused["param"] == "logprobs"
    assert states(edge)["http://127.0.0.1:9/v1"] == "refused"
    assert edge.end() == 0


def test_conversations_with_the_same_begin_go_to_the_same_engine(engines):
    edge = Server(*[f"ours={engine.url}" for engine in engines])
    wait_until(lambda: list(states(edge).values()).count("ready") == 2)
    for topic in range(8):
        for _ in range(2):
            edge.post(body(model="ours", messages=[{"role": "user", "content": f"topic {topic}"}]))
    seen = [{asked["messages"][0]["content"] for asked in engine.asked} for engine in engines]
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    assert edge.end() == 0
