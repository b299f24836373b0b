"""A server on loopback that answers as a function tells it to, well or badly, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self


class Request(NamedTuple):
    method: str
    path: str
    headers: Any  # a mapping that does not mind the case of its keys
    body: bytes
    time: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """A whole body, or pieces that are sent as they come; one shorter than a Content-Length given by hand breaks off."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: object, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
        return cls(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})


class Server:
    """`reply(request)` is what it answers, by threads of its own."""

    def __init__(self, reply: Callable[[Request], Reply], port: int = 0, address: str = "127.0.0.1", tls: Any = None) -> None:  # fmt: skip
        self.reply = reply
        self.requests: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or the body waits 40 ms for an acknowledgement of the headers

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                if len(body) < length:  # the client has gone in the middle of its request
                    self.close_connection = True
                    return
                request = Request(self.command, self.path, self.headers, body, time.monotonic())
                outer.requests.append(request)
                answer = outer.reply(request)
                whole = isinstance(answer.body, bytes)
                headers = {"Content-Length": str(len(answer.body))} if whole else {"Connection": "close"}
                self.send_response(answer.status)
                for name, value in {**headers, **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.close_connection |= "Content-Length" in answer.headers
                for piece in () if self.command == "HEAD" else [answer.body] if whole else answer.body:
                    self.wfile.write(piece)
                    self.wfile.flush()

            do_POST = do_HEAD = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that was killed is part of the tests

        self._server = Quiet((address, port), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http://{address}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that only a server of ours can take."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


class Status(Exception):
    """Make a chat server answer with this status."""

    def __init__(self, code: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        made = Reply(body, code) if isinstance(body, bytes) else Reply.json(body or {"error": {"message": "no"}}, code)
        made.headers |= headers or {}
        self.reply = made


class Break(Exception):
    """Make a chat server close the connection in the middle of its answer."""


class Chat(Server):
    """An OpenAI-compatible server. `answer(messages, body)` gives the text, with its finish if that is not `stop`, or
    several pieces for a stream, or raises Status or Break. It calls its models `reported`, or `served-MODEL`."""

    fingerprint: str | None = None
    reported: str | None = None

    def __init__(self, answer: Callable[[list[dict], dict], Any], models: tuple[str, ...] = ("m",), port: int = 0) -> None:  # fmt: skip
        self.answer, self.models = answer, models
        super().__init__(self._reply, port)
        self.url += "/v1"

    @property
    def asked(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    @property
    def bodies(self) -> list[dict]:
        return [request.json for request in self.asked]

    def _reply(self, request: Request) -> Reply:
        known = {"system_fingerprint": self.fingerprint} if self.fingerprint else {}
        if request.method == "GET":
            listed = [{"id": name, "object": "model", **known} for name in self.models]
            return Reply.json({"object": "list", "data": listed})
        body = request.json
        try:
            answer = self.answer(body["messages"], body)
        except Status as status:
            return status.reply
        except Break:
            return Reply(b'{"choices": [{"message"', headers={"Content-Length": "1000"})
        if body.get("stream"):
            pieces = [answer] if isinstance(answer, str) else answer
            return Reply(events(pieces), headers={"Content-Type": "text/event-stream"})
        text, finish = answer if isinstance(answer, tuple) else (answer, "stop")
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 3, "completion_tokens": len(text), "total_tokens": 3 + len(text)}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        about = {"id": "1", "object": "chat.completion", "created": 0, **known}
        about["model"] = self.reported or "served-" + body["model"]
        return Reply.json({**about, "choices": [choice], "usage": usage})


def events(pieces: Iterable[str]) -> Iterator[bytes]:
    """The server-sent events of an answer, which end without a word where the pieces raise Break."""

    def event(delta: dict, finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
        return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"

    try:
        for piece in pieces:
            yield event({"content": piece}, None)
    except Break:
        return
    yield event({}, "stop")
    yield b"data: [DONE]\n\n"


def judge_reply(request: Request) -> Reply:
    """gpt-4.1 as a judge that always finds the first answer a little better, and takes schemas."""
    if request.method == "GET":
        return Reply.json({"object": "list", "data": [{"id": "gpt-4.1", "object": "model"}]})
    asked = request.json.get("response_format")
    names = list(asked["json_schema"]["schema"]["properties"]) if asked else []
    values = ["The first answer is a little better.", 5, *[4] * len(names)]
    message = {"role": "assistant", "content": json.dumps(dict(zip(names, values, strict=False)))}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    about = {"id": "x", "object": "chat.completion", "created": 0, "model": "gpt-4.1"}
    return Reply.json({**about, "choices": [choice], "usage": usage})
