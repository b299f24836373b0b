# ruff: noqa: TID253  imported by the edge alone
"""The workers of one model as the edge sees them, and answers that outlive the worker which writes them.

A worker gets ids and gives ids. When it is lost, the ids of prompt and answer so far go to another one, which goes on:
the same seed draws the same numbers at the same positions, so that sampled answers go on token for token as well.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import h11
import orjson

from vtools.inference.client import Token
from vtools.serve.exchange import Exchange, Remote
from vtools.serve.metrics import Metrics

CONNECT = 2.0  # seconds
STALL = 5.0  # between two tokens, or signs of life, which a worker gives every second
SUSPECT = 30.0  # for which others are asked before a worker that lost an answer, unless it shows that it lives
RESTART = 120.0  # for a worker to come up, or to show that it lives, where none can be asked
RESUMES = 2  # of one answer
DEATHS = 2  # of workers under one request, which is then suspected to be their cause
EVENT = 1 << 20  # bytes of the longest event that a worker writes


class Lost(Exception):
    """A worker did not finish: `reason` is connect, lost or stall."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NoWorker(Exception):
    """No worker of the model is up, and none came up in time."""


class Broken(Exception):
    """An answer that cannot be finished, and why."""


class Refused(Exception):
    """A worker refused the request."""


class Some(NamedTuple):
    """Some tokens of an answer; `finish` is set with its last."""

    tokens: list[Token]
    finish: str | None = None


@dataclass
class Trace:
    """What happened to one answer."""

    workers: list[str] = field(default_factory=list)  # those that wrote it, in turn
    resumes: int = 0


@dataclass(eq=False)
class Worker:
    """A process that is up; `pid` is 0 on another machine."""

    name: str
    pid: int
    place: str | Remote
    suspect_until: float = 0.0  # it lost an answer: others are asked first
    draining: bool = False  # it ends with the answers that it is writing
    elsewhere: int = 0  # answers that it writes for other edges, when it last said so
    asked: int = 0  # how often, so that equally busy ones take turns
    _open: set[Exchange] = field(default_factory=set)

    @property
    def in_flight(self) -> int:
        """How many answers it writes."""
        return len(self._open)

    async def stream(self, body: bytes) -> AsyncGenerator[Some]:
        """The ids of an answer. Raises Lost, Refused."""
        exchange = Exchange(self.place)
        self.asked += 1
        self._open.add(exchange)
        try:
            await self._within(CONNECT, "connect", exchange.post("/v1/completions", body))
            status = (await self._within(STALL, "connect", exchange.next())).status_code
            rest = b""
            while True:
                event = await self._within(STALL, "lost", exchange.next())
                if isinstance(event, h11.Data):
                    *blocks, rest = (rest + event.data).split(b"\n\n")
                    if len(rest) > EVENT:
                        raise Lost("lost")
                elif status == 400:
                    raise Refused(str(orjson.loads(rest)["error"]["message"]))
                else:  # 503 is of a worker that ends
                    raise Lost("lost" if status == 200 else "connect")
                for block in blocks:
                    if not block.startswith(b"data: {"):
                        continue  # a sign of life
                    found = orjson.loads(block[6:])
                    if "error" in found:
                        raise Lost("lost")
                    choice = found["choices"][0]
                    yield Some(_tokens(choice), choice["finish_reason"])
                    if choice["finish_reason"]:
                        return
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):  # what it says makes no sense
            raise Lost("lost") from None
        finally:
            self._open.remove(exchange)
            exchange.close()

    async def _within(self, seconds: float, reason: str, work: Awaitable[Any]) -> Any:
        """Its result. Raises Lost if it takes longer than this, or the connection breaks off."""
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise Lost("stall") from None
        except (OSError, h11.RemoteProtocolError):
            raise Lost(reason) from None

    def close(self) -> None:
        """Break off its answers: their iterators raise Lost."""
        for exchange in self._open:
            exchange.close()


@dataclass(eq=False)
class Model:
    """The workers of a model that are up, and what is counted of them."""

    name: str
    metrics: Metrics
    context: int = 0
    vocabulary: int = 0
    digest: str = ""
    workers: dict[str, Worker] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    doubted: Callable[[Worker], None] = lambda worker: None  # is told of a worker that lost an answer

    def close(self) -> None:
        """End the answers that are still written: their iterators raise Broken."""
        self.closed = True
        self.changed.set()
        for name in list(self.workers):
            self.down(name)

    def up(self, worker: Worker, context: int, vocabulary: int, digest: str) -> None:
        """A worker has come up; all that do have the same weights."""
        self.context, self.vocabulary, self.digest = context, vocabulary, digest
        worker.draining = False
        self.workers[worker.name] = worker
        self.changed.set()
        self._count()

    def alive(self, name: str) -> None:
        """A worker that lost an answer can be asked again."""
        if worker := self.workers.get(name):
            worker.suspect_until = 0.0
            self.changed.set()

    def drain(self, name: str) -> None:
        """A worker takes no new requests."""
        if worker := self.workers.get(name):
            worker.draining = True

    def _count(self) -> None:
        self.metrics.workers.labels(self.name).set(len(self.workers))

    def down(self, name: str) -> None:
        """A worker has ended."""
        if worker := self.workers.pop(name, None):
            worker.close()
            self._count()
            if not self.closed:
                self.metrics.restarts.labels(self.name).inc()

    def leave(self, name: str) -> None:
        """A worker takes no new requests, and what it writes it may finish."""
        if worker := self.workers.pop(name, None):
            worker.draining = True
            self._count()

    async def ready(self) -> None:
        """Wait until a worker has said what the model's context is. Raises NoWorker, Broken."""
        if not self.context:
            await self._chosen(set())

    async def _chosen(self, tried: set[Worker]) -> Worker:
        """The least busy worker, rather one that was not tried than one that was, and no suspect that was.

        Raises NoWorker after a while without any, Broken.
        """
        end = time.monotonic() + RESTART
        while True:
            if self.closed:
                raise Broken("the server is stopping, and its time for running answers is over")
            now = time.monotonic()
            free = [one for one in self.workers.values() if not one.draining]
            new = [worker for worker in free if worker not in tried]
            calm = [worker for worker in free if worker.suspect_until <= now]
            # One that drains is better than none: all of them do where other weights have replaced theirs.
            last = [one for one in self.workers.values() if one.draining and one not in tried]
            for choice in ([worker for worker in calm if worker in new], new, calm, last):
                if choice:
                    return min(choice, key=lambda worker: (worker.in_flight + worker.elsewhere, worker.asked))
            if now >= end:
                raise NoWorker(f"no worker of {self.name} answers; try again later")
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                until = min([end, *(worker.suspect_until for worker in free)])
                await asyncio.wait_for(self.changed.wait(), until - now)

    async def answer(
        self, prompt: list[int], limit: int, options: dict[str, Any], trace: Trace, begun: Sequence[int] = ()
    ) -> AsyncGenerator[Some]:
        """The ids of an answer of at most `limit` tokens, whatever happens to the workers.

        It goes on after the ids of its begin, if there is one. Raises NoWorker, Broken, Refused.
        """
        given = list(begun)
        tried: set[Worker] = set()
        deaths = resumes = 0
        while True:
            worker = await self._chosen(tried)
            tried.add(worker)
            before = len(given)
            trace.workers.append(worker.name)
            body = {**options, "prompt": prompt + given, "max_tokens": limit - len(given)}
            try:
                async with contextlib.aclosing(worker.stream(orjson.dumps(body))) as stream:
                    async for found in stream:
                        new = [token.id for token in found.tokens]
                        if len(given) + len(new) > limit or not all(0 <= number < self.vocabulary for number in new):
                            raise Lost("lost")
                        given += new
                        yield found
                        if found.finish:
                            return
                raise Lost("lost")
            except Lost as lost:
                if self.closed:
                    raise Broken("the server is stopping, and its time for running answers is over") from None
                if not worker.draining:  # one that drains could not finish in time, which is nobody's fault
                    worker.suspect_until = time.monotonic() + SUSPECT
                    self.doubted(worker)
                    if lost.reason == "stall":
                        self.metrics.stalls.labels(self.name).inc()
                    deaths += lost.reason == "lost"
                    if deaths >= DEATHS:
                        raise Broken(f"{deaths} workers failed while they wrote this answer") from None
                    if resumes >= RESUMES:
                        raise Broken(f"the answer was lost {resumes + 1} times") from None
                    # One that is frozen and gave nothing costs no resume: several may freeze before it is known.
                    resumes += lost.reason != "stall" or len(given) > before
                trace.resumes += 1
                self.metrics.resumes.labels(self.name, lost.reason).inc()


def _tokens(choice: dict[str, Any]) -> list[Token]:
    ids, logprobs = choice["token_ids"], choice.get("logprobs")
    if logprobs is None:
        return [Token(number) for number in ids]
    tops = ({int(number): value for number, value in top.items()} for top in logprobs["top_logprobs"])
    return [Token(*each) for each in zip(ids, logprobs["token_logprobs"], tops, strict=True)]
