"""Workers that join an edge and do not keep to the rules: real sockets, leases signed as asked."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2

from vtools.inference.identity import fingerprint
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.serve import signatures, template_files
from vtools.serve.lease import Lease
from vtools.serve.vetting import CHALLENGE, TEMPLATE, signed

DIGEST = "0123456789abcdef0123456789abcdef"


class Rogue:
    """A worker that answers prompts with the token 7, or does as it is told: tests replace its `answers`."""

    def __init__(self, folder: Path, edge: str, token: bytes, name: str = "good", at: str = "127.0.0.2") -> None:
        self.template = load_template(None, load_tokenizer(str(folder)))
        self.edge, self.token = edge.removesuffix("/v1"), token
        self.asked: list[str] = []
        self.answers = {CHALLENGE: self.challenge, TEMPLATE: self.files, "/v1/completions": self.completions}
        rogue = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                rogue.asked.append(self.path)
                with contextlib.suppress(OSError):
                    rogue.answers[self.path](self, body)

            def log_message(self, *about: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((at, 0), Handler)
        self._server.daemon_threads = True
        named = fingerprint(DIGEST, self.template)
        url = f"http://{at}:{self._server.server_address[1]}"
        self.lease = Lease(secrets.token_hex(8), name, url, "key", 512, 400, DIGEST, named)

    def challenge(self, handler: http.server.BaseHTTPRequestHandler, body: dict) -> None:
        send(handler, signed(self.token, body["nonce"], {"id": self.lease.id, **self.lease.served()}))

    def files(self, handler: http.server.BaseHTTPRequestHandler, body: dict) -> None:
        send(handler, template_files.written(self.template))

    def completions(self, handler: http.server.BaseHTTPRequestHandler, body: dict) -> None:
        handler.send_response(200)
        handler.end_headers()
        for number in range(body["max_tokens"]):
            last = number == body["max_tokens"] - 1
            choice = {"token_ids": [7], "finish_reason": "length" if last else None}
            choice["logprobs"] = {"token_logprobs": [-0.1], "top_logprobs": [self.tops()]}
            handler.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")

    def tops(self) -> dict[str, float]:
        return {"7": -0.1, "8": -3.0}

    def beat(self, token: bytes | None = None, **changes: object) -> dict:
        """Send a lease; what the edge says."""
        body = json.dumps({**dataclasses.asdict(self.lease), **changes}).encode()
        headers = signatures.headers(self.token if token is None else token, "/fleet/lease", body)
        return httpx2.post(f"{self.edge}/fleet/lease", content=body, headers=headers, timeout=20).json()

    @contextlib.contextmanager
    def listening(self) -> Iterator[Rogue]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


def send(handler: http.server.BaseHTTPRequestHandler, value: object, status: int = 200, **headers: str) -> None:
    """Answer with JSON, or with bytes."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    handler.send_response(status)
    for name, text in headers.items():
        handler.send_header(name, text)
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
