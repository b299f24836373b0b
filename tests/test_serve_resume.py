"""An answer whose workers fail, in every way that a connection can: real sockets, workers that do as they are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from vtools.serve import upstream
from vtools.serve.metrics import Metrics

PROMPT, LENGTH = [5, 6, 7], 6
Writes = Callable[[list[bytes], asyncio.StreamWriter], Awaitable[None]]


def token(place: int) -> int:
    """The token at a place of prompt and answer."""
    return 100 + place * 7 % 50


WHOLE = [token(len(PROMPT) + place) for place in range(LENGTH)]


def event(value: object) -> bytes:
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def reply(prompt: list[int], most: int) -> list[bytes]:
    """The parts of a good reply."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    parts = [head, b"d\r\n: keepalive\n\n\r\n"]
    for number in range(most):
        finish = "length" if number == most - 1 else None
        parts.append(event({"choices": [{"token_ids": [token(len(prompt) + number)], "finish_reason": finish}]}))
    return [*parts, b"0\r\n\r\n"]


async def whole(parts: list[bytes], writer: asyncio.StreamWriter) -> None:
    writer.writelines(parts)


async def silent(parts: list[bytes], writer: asyncio.StreamWriter) -> None:
    writer.writelines(parts[:4])
    await asyncio.sleep(60)


def first(count: int) -> Writes:
    """So many bytes of the reply, and then nothing."""

    async def write(parts: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(parts)[:count])

    return write


def other(status: bytes) -> Writes:
    """Another status."""

    async def write(parts: list[bytes], writer: asyncio.StreamWriter) -> None:
        body = b'{"error":{"message":"no such token"}}'
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))

    return write


async def failing(parts: list[bytes], writer: asyncio.StreamWriter) -> None:
    writer.writelines([*parts[:3], event({"error": {"message": "out of luck"}})])


class Cluster:
    """A model with a worker for each way of answering; what came of an answer."""

    def __init__(self, folder, *ways: Writes | None) -> None:
        self.asked: list[str] = []
        self.doubted: list[int] = []
        self.model = upstream.Model("m", Metrics(["m"]), doubted=self._doubted)
        self.trace = upstream.Trace()
        self._folder, self._ways = folder, ways

    def _doubted(self, worker: upstream.Worker) -> None:
        self.doubted.append(worker.pid)

    async def _serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(f"w{number}")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        asked = json.loads(await reader.readexactly(length))
        try:
            await self._ways[number](reply(asked["prompt"], asked["max_tokens"]), writer)
        finally:
            writer.close()

    async def answer(self) -> list[int]:
        """The ids of an answer; an error is raised after those that came before it."""
        servers = []
        for number, way in enumerate(self._ways):
            path = f"{self._folder}/{number}"
            if way is not None:
                serve = lambda reader, writer, number=number: self._serve(number, reader, writer)  # noqa: E731
                servers.append(await asyncio.start_unix_server(serve, path))
            self.model.up(upstream.Worker(f"w{number}", 1000 + number, path), 512, 400, "digest")
        self.ids: list[int] = []
        finish = None
        try:
            async for some in self.model.answer(PROMPT, LENGTH, {"seed": 1}, self.trace):
                self.ids += [one.id for one in some.tokens]
                finish = some.finish
        finally:
            for server in servers:
                server.close()
            assert [worker.in_flight for worker in self.model.workers.values()] == [0] * len(self._ways)
        assert finish == "length"
        return self.ids

    def count(self, reason: str) -> float:
        return self.model.metrics.resumes.labels("m", reason)._value.get()


BYTES = len(b"".join(reply(PROMPT, LENGTH)))


@pytest.mark.parametrize("start", range(5))
def test_an_answer_that_breaks_off_at_any_byte_has_each_token_once(tmp_path, start):
    for count in range(start, BYTES, 5):
        cluster = Cluster(tmp_path, first(count), whole)
        assert asyncio.run(cluster.answer()) == WHOLE
        assert cluster.trace.workers == cluster.asked
        assert cluster.trace.resumes == len(cluster.asked) - 1 == sum(map(cluster.count, ("lost", "connect")))


@pytest.mark.parametrize(
    ("ways", "reason"),
    [((None, whole), "connect"), ((other(b"503 Busy"), whole), "connect"), ((failing, whole), "lost")],
)
def test_a_worker_that_refuses_or_fails_is_left_for_another(tmp_path, ways, reason):
    cluster = Cluster(tmp_path, *ways)
    assert asyncio.run(cluster.answer()) == WHOLE
    assert (cluster.trace.workers, cluster.count(reason)) == (["w0", "w1"], 1)


def test_a_request_under_which_two_workers_died_is_given_to_no_third(tmp_path):
    cluster = Cluster(tmp_path, first(300), first(300), whole)
    with pytest.raises(upstream.Broken, match="2 workers failed"):
        asyncio.run(cluster.answer())
    assert cluster.asked == ["w0", "w1"]
    assert cluster.ids == WHOLE[: len(cluster.ids)] and 0 < len(cluster.ids) < LENGTH


def test_an_answer_moves_twice_at_most(tmp_path):
    cluster = Cluster(tmp_path, None, None, None, whole)
    with pytest.raises(upstream.Broken, match="lost 3 times"):
        asyncio.run(cluster.answer())
    assert cluster.trace.workers == ["w0", "w1", "w2"]


def test_what_a_worker_refuses_is_not_asked_of_another(tmp_path):
    cluster = Cluster(tmp_path, other(b"400 Bad Request"), whole)
    with pytest.raises(upstream.Refused, match="no such token"):
        asyncio.run(cluster.answer())
    assert cluster.asked == ["w0"]


def test_an_answer_leaves_a_silent_worker_and_comes_back_to_it_only_when_it_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(upstream, "STALL", 0.3)
    cluster = Cluster(tmp_path, silent, whole)
    assert asyncio.run(cluster.answer()) == WHOLE
    assert (cluster.trace.workers, cluster.doubted, cluster.count("stall")) == (["w0", "w1"], [1000], 1)

    ways = iter([silent, whole])

    async def in_turn(parts: list[bytes], writer: asyncio.StreamWriter) -> None:
        await next(ways)(parts, writer)

    alone = Cluster(tmp_path, in_turn)

    async def answer() -> list[int]:
        answering = asyncio.create_task(alone.answer())
        while not alone.doubted:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert alone.asked == ["w0"]
        alone.model.alive("w0")
        return await answering

    assert asyncio.run(answer()) == WHOLE
    assert alone.trace.workers == ["w0", "w0"]


def test_without_a_worker_an_answer_waits_and_then_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(upstream, "RESTART", 0.2)
    with pytest.raises(upstream.NoWorker, match="no worker of m answers"):
        asyncio.run(Cluster(tmp_path).answer())
