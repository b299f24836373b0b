"""A site of conversations whose server misbehaves in every way that crawlers meet, and what of it can be had."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections import Counter
from email.utils import formatdate

import zstandard
from chats import chat
from loopback import Reply, Request, Server

LOGIN = b"<html><body><form><input name=u><input type='password' name=p></form></body></html>"
CHALLENGE = b"<!DOCTYPE html><html><head><title>Attention Required!</title></head><body></body></html>"


def conversation(name: str) -> dict:
    return {"id": name, "messages": chat(f"What of {name}?", f"This of {name}. " + "word " * 40)}


def body(name: str) -> bytes:
    return json.dumps(conversation(name)).encode()


class Site(Server):
    """Each path is a way to misbehave; `versions` changes what a path gives. Counts what runs at the same time."""

    GOOD = ("plain", "later", "date", "broken", "truncated", "moved", "page", "packed", "zstd")
    BAD = ("gone", "denied/x", "inside", "metadata", "bomb", "zstdbomb", "endless", "blank", "stall", "login", "challenge", "wall", "loop", "file")  # fmt: skip

    def __init__(self, elsewhere: str = "http://127.0.0.1:9", robots: bytes = b"User-agent: *\nDisallow: /denied/") -> None:  # fmt: skip
        self.elsewhere, self.robots = elsewhere, robots
        self.versions: Counter[str] = Counter()
        self.visits: Counter[str] = Counter()  # by path, without its first slash
        self.under_way = self.most = 0
        self._lock = threading.Lock()
        self.ended = threading.Event()
        super().__init__(self._counted)

    def urls(self, *names: str) -> list[str]:
        return [f"{self.url}/{name}" for name in names]

    @property
    def asked(self) -> list[str]:
        return [request.path.lstrip("/") for request in self.requests]

    def _counted(self, request: Request) -> Reply:
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            name = request.path.lstrip("/")
            self.visits[name] += 1
            visit = self.visits[name]
        try:
            return self._reply(request, name, visit)
        finally:
            with self._lock:
                self.under_way -= 1

    def _reply(self, request: Request, name: str, visit: int) -> Reply:
        whole = body(name + (f" {self.versions[name]}" if self.versions[name] else ""))
        tag = f'"{name} {self.versions[name]}"'
        if name == "robots.txt":
            return Reply(self.robots)
        if name == "later" and visit == 1:
            return Reply(status=429, headers={"Retry-After": "1"})
        if name == "date" and visit == 1:
            return Reply(status=503, headers={"Retry-After": formatdate(time.time() + 2, usegmt=True)})
        if name == "broken" and visit < 3:
            return Reply(status=500)
        if name == "truncated":
            start = int((request.headers.get("Range") or "bytes=0-")[6:-1])
            if visit < 3:
                return Reply(whole[start : start + 60], 206 if start else 200, {"ETag": tag, "Content-Length": str(len(whole) - start), **({"Content-Range": f"bytes {start}-{len(whole)}/{len(whole)}"} if start else {})})  # fmt: skip
            return Reply(whole[start:], 206, {"ETag": tag, "Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"})  # fmt: skip
        if name == "moved":
            return Reply(status=301, headers={"Location": "/moved/here"})
        if name == "gone":
            return Reply(status=404)
        if name == "inside":
            return Reply(status=302, headers={"Location": f"{self.elsewhere}/secret"})
        if name == "metadata":
            return Reply(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data/"})
        if name == "file":
            return Reply(status=302, headers={"Location": "file:///etc/passwd"})
        if name == "loop":
            return Reply(status=302, headers={"Location": "/loop"})
        if name == "bomb":
            return Reply(BOMB)
        if name == "zstdbomb":
            return Reply(zstandard.compress(b"[" + b" " * (1 << 27), 3))
        if name == "endless":
            return Reply(self._endless(b"x" * 65536))
        if name == "blank":
            return Reply(self._endless(b"\n" * 65536))
        if name == "stall":
            self.ended.wait(30)
        if name == "login":
            return Reply(LOGIN, headers={"Content-Type": "text/html"})
        if name == "challenge":
            return Reply(CHALLENGE, 200, {"Content-Type": "text/html"})
        if name == "wall":
            return Reply(CHALLENGE, 403, {"cf-mitigated": "challenge"})
        if request.headers.get("If-None-Match") == tag:
            return Reply(status=304, headers={"ETag": tag})
        packed = {"packed": gzip.compress, "zstd": zstandard.compress}.get(name, bytes)
        kind = "image/png" if name == "page" else "application/json"
        return Reply(packed(whole), headers={"ETag": tag, "Content-Type": kind})

    def _endless(self, piece: bytes):
        while not self.ended.is_set():
            yield piece

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        super().__exit__(*error)


BOMB = gzip.compress(b"[" + b" " * (1 << 27), 9)


def most_within_a_second(times: list[float]) -> int:
    """The most requests that came within any one second."""
    return max(sum(start <= other < start + 1 for other in times) for start in times)
