# ruff: noqa: TID253  imported by the edge alone
"""Engines of others behind the edge: any OpenAI-compatible server, named by its URL, asked for text.

It sends no leases, so the edge beats for it: it asks for one token while nothing else comes from it. Where one fails
amid an answer, another of the model goes on after the text so far, if it continues a last message as vLLM does.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx2
import orjson

from vtools.inference.address import Server, one_line
from vtools.inference.client import Sampling
from vtools.process import say
from vtools.serve.answer import Piece
from vtools.serve.lease import BEAT, LIFE
from vtools.serve.metrics import Metrics
from vtools.serve.upstream import CONNECT, EVENT, RESTART, RESUMES, Broken, Lost, NoWorker, Refused, Trace

FIRST = 300.0  # seconds to the first token: such a server says nothing while a request waits
BETWEEN = 30.0  # seconds between two tokens
CANARY = 5.0  # seconds for one token, or for the list of models
SLACK = 4  # more answers under way than at the least busy engine, for the sake of what it has cached of a conversation


class Named(NamedTuple):
    """An engine on the command line; without a name, its models have their own."""

    name: str | None
    url: str


@dataclass(eq=False)
class Engine:
    """A server and one of its models, which it calls `model`."""

    server: Server
    model: str
    in_flight: int = 0
    moved: float = 0.0  # when a token last came from it

    @property
    def up(self) -> bool:
        """Whether a token has come from it lately."""
        return time.monotonic() - self.moved < LIFE


@dataclass(eq=False)
class Foreign:
    """The engines of one model."""

    name: str
    metrics: Metrics
    client: httpx2.AsyncClient
    engines: dict[str, Engine]  # by URL

    async def chosen(self, tried: set[Engine], begin: bytes) -> Engine:
        """One of the least busy engines: the same for the same begin of a conversation. Raises NoWorker."""
        end = time.monotonic() + RESTART
        while time.monotonic() < end:
            up = [engine for engine in self.engines.values() if engine.up]
            if choice := [engine for engine in up if engine not in tried] or up:
                least = min(engine.in_flight for engine in choice)
                near = [engine for engine in choice if engine.in_flight <= least + SLACK]
                return max(near, key=lambda one: hashlib.sha256(begin + one.server.url.encode()).digest())
            await asyncio.sleep(0.1)
        raise NoWorker(f"no engine of {self.name} answers; try again later")

    async def stream(self, engine: Engine, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The events of an answer. Raises Lost, Refused."""
        content = orjson.dumps(
            {**body, "model": engine.model, "stream": True, "stream_options": {"include_usage": True}}
        )
        timeout = httpx2.Timeout(FIRST, connect=CONNECT)
        engine.in_flight += 1
        try:
            request = self.client.stream(
                "POST", f"{engine.server.url}{path}", content=content, headers=_headers(engine), timeout=timeout
            )
            async with request as response:
                if response.status_code in (400, 422):
                    raise Refused(_said(await response.aread()))
                if response.status_code != 200:
                    raise Lost("connect")
                async with contextlib.aclosing(_events(response)) as events:
                    async for event in events:
                        engine.moved = time.monotonic()
                        yield event
        except (httpx2.TimeoutException, TimeoutError):
            raise Lost("stall") from None
        except (httpx2.HTTPError, ValueError):
            raise Lost("lost") from None
        finally:
            engine.in_flight -= 1


class Answer:
    """Iterate over its pieces, as over those of `answer.Answer`; its tokens are counted as the engine says."""

    def __init__(self, model: Foreign, path: str, asked: dict[str, Any], sampling: Sampling, trace: Trace) -> None:
        """`asked` has `messages` or a `prompt`."""
        self.finish: str | None = None
        self.count = self.prompt_tokens = 0
        self._model, self._path, self._asked, self._sampling, self._trace = model, path, asked, sampling, trace

    async def __aiter__(self) -> AsyncIterator[Piece]:
        text, tried, resumes = "", set[Engine](), 0
        begin = orjson.dumps(self._asked["messages"][:2] if "messages" in self._asked else self._asked["prompt"])[:1024]
        while True:
            engine = await self._model.chosen(tried, begin)
            tried.add(engine)
            self._trace.workers.append(engine.server.url)
            try:
                body = self._body(text)
                async with contextlib.aclosing(self._model.stream(engine, self._path, body)) as events:
                    async for event in events:
                        piece = self._read(event)
                        if piece:
                            text += piece
                            yield Piece(piece, [])
                if self.finish:
                    return
                raise Lost("lost")
            except Lost as lost:
                if self.finish:  # only the usage is missing
                    return
                engine.moved = 0.0  # until a canary comes through
                if resumes >= RESUMES:
                    raise Broken(f"the answer was lost {resumes + 1} times") from None
                resumes += 1
                self._trace.resumes += 1
                self._model.metrics.resumes.labels(self._model.name, lost.reason).inc()

    def _read(self, event: dict[str, Any]) -> str:
        """The text in an event. Raises Lost if there is an error in it, or no sense."""
        try:
            if event.get("error"):
                raise Lost("lost")
            if usage := event.get("usage"):
                self.count, self.prompt_tokens = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
            for choice in event.get("choices", [])[:1]:
                self.finish = choice.get("finish_reason") or self.finish
                piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                self.count += bool(piece) and not event.get("usage")
                return str(piece)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Lost("lost") from None
        return ""

    def _body(self, text: str) -> dict[str, Any]:
        """The request that goes on after a text."""
        options = {name: value for name, value in self._sampling.options().items() if value is not None}
        if text and "max_tokens" in options:
            options["max_tokens"] = max(1, options["max_tokens"] - self.count)
        asked = dict(self._asked)
        if text and "messages" in asked:
            *before, last = asked["messages"]
            if last["role"] != "assistant":
                before, last = [*before, last], {"role": "assistant", "content": ""}
            asked["messages"] = [*before, {**last, "content": last["content"] + text}]
        elif text:
            if not isinstance(asked["prompt"], str):
                raise Broken(
                    "the engine that wrote this answer was lost, and a prompt of ids cannot go on after a text"
                )
            asked["prompt"] += text
        if "messages" in asked and asked["messages"][-1]["role"] == "assistant":  # as vLLM and SGLang name it
            asked |= {"continue_final_message": True, "add_generation_prompt": False}
        return {**asked, **options}


class Engines:
    """The engines of the command line; their models come and go in `models`."""

    def __init__(self, named: list[Named], metrics: Metrics) -> None:
        self.models: dict[str, Foreign] = {}
        self._named, self._metrics = [(Server(each.url), each.name) for each in named], metrics
        self._client = httpx2.AsyncClient(trust_env=False, follow_redirects=False, limits=httpx2.Limits())
        self._reasons = {server.url: "it has not answered yet" for server, _ in self._named}

    async def watch(self) -> None:
        """Look at all of them, for ever."""
        await asyncio.gather(*(self._watch(server, name) for server, name in self._named))

    async def _watch(self, server: Server, name: str | None) -> None:
        known: list[Engine] = []
        while True:
            try:
                known = known or await self._find(server, name)
                for engine in known:
                    if time.monotonic() - engine.moved >= BEAT:
                        await self._beat(engine)
                reason = ""
            except (httpx2.HTTPError, TimeoutError, ValueError, KeyError, TypeError) as error:
                reason = one_line(str(error) or type(error).__name__)
            if reason != self._reasons[server.url]:
                say("serve", f"{server.url}: {f'no answer: {reason}' if reason else 'it answers'}")
                self._reasons[server.url] = reason
            await asyncio.sleep(BEAT)

    async def _find(self, server: Server, ours: str | None) -> list[Engine]:
        """The engine's models, among ours from now on. Raises ValueError and others."""
        engine = Engine(server, "")
        reply = await self._client.get(f"{server.url}/models", headers=_headers(engine), timeout=CANARY)
        if reply.status_code != 200:
            raise ValueError(f"/models: HTTP {reply.status_code}: {_said(reply.content)}")
        theirs = [str(model["id"]) for model in reply.json()["data"]]
        if ours is not None and len(theirs) != 1:
            if ours not in theirs:
                raise ValueError(f"it has {len(theirs)} models, none of which is {ours}; leave out the name")
            theirs = [ours]
        found = []
        for model in theirs:
            name = ours or model
            engines = self.models.setdefault(name, Foreign(name, self._metrics, self._client, {})).engines
            found.append(engines.setdefault(server.url, Engine(server, model)))
        return found

    async def _beat(self, engine: Engine) -> None:
        """Ask for one token. Raises HTTPError, ValueError and others."""
        hello = [{"role": "user", "content": "hi"}]
        asked = orjson.dumps({"model": engine.model, "messages": hello, "max_tokens": 1})
        reply = await self._client.post(
            f"{engine.server.url}/chat/completions", content=asked, headers=_headers(engine), timeout=CANARY
        )
        if reply.status_code != 200 or not reply.json()["choices"]:
            raise ValueError(f"one token: HTTP {reply.status_code}: {_said(reply.content)}")
        engine.moved = time.monotonic()

    def status(self) -> list[dict[str, Any]]:
        """The engines as rows of the edge's status."""
        rows: list[dict[str, Any]] = []
        for server, name in self._named:
            reason = self._reasons[server.url]
            about = {"url": server.url, **({"reason": reason} if reason else {})}
            found = [
                (name, model.engines[server.url]) for name, model in self.models.items() if server.url in model.engines
            ]
            for model, engine in found:
                state = "ready" if engine.up else "refused"
                rows.append(
                    {"model": model, "worker": server.url, "state": state, "in_flight": engine.in_flight, **about}
                )
            if not found:
                rows.append({"model": name, "worker": server.url, "state": "refused", "in_flight": 0, **about})
        return rows


def _headers(engine: Engine) -> dict[str, str]:
    key = engine.server.key
    return {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}


async def _events(response: httpx2.Response) -> AsyncGenerator[dict[str, Any]]:
    """The JSON of server-sent events. Raises ValueError, TimeoutError."""
    rest, waited = b"", FIRST
    chunks = response.aiter_bytes()
    while True:
        try:
            async with asyncio.timeout(waited):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        *lines, rest = (rest + chunk.replace(b"\r\n", b"\n")).split(b"\n")
        if len(rest) > EVENT:
            raise ValueError("an event has no end")
        for line in lines:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                event = orjson.loads(line[5:])
                if not isinstance(event, dict):
                    raise ValueError("an event is no object")
                waited = BETWEEN
                yield event


def _said(body: bytes) -> str:
    """The words of an error."""
    try:
        found = orjson.loads(body)
        return one_line(found["error"]["message"] if isinstance(found.get("error"), dict) else found)
    except (ValueError, KeyError, TypeError, AttributeError):
        return one_line(body[:200].decode(errors="replace"))
