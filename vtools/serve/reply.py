# ruff: noqa: TID253  imported by the edge alone
"""One request from its start to its event: its answers, written at the same time, sent whole or as they come."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from vtools.inference.client import Token
from vtools.inference.identity import fingerprint
from vtools.inference.limits import AnswerTooLong, PromptTooLong, limit
from vtools.inference.text import chat_text, continued_text
from vtools.models.template import Template
from vtools.process import say
from vtools.records.jsonl import Reject
from vtools.serve import foreign
from vtools.serve.answer import Answer, Piece
from vtools.serve.errors import ApiError, unsupported
from vtools.serve.foreign import Foreign
from vtools.serve.metrics import Metrics
from vtools.serve.parameters import CHAT, COMPLETION_TOKENS, COMPLETIONS, Parameters
from vtools.serve.shapes import Chat, Completion
from vtools.serve.upstream import Broken, Model, NoWorker, Refused, Some, Trace

CLIENT_GONE = 499  # nginx's status for it; appears only in our events
KEEPALIVE = 15.0  # seconds without an event before a comment is sent, as proxies close silent connections

_PATHS = {CHAT: "/chat/completions", COMPLETIONS: "/completions"}
Event = Callable[[dict[str, Any]], None]


class Reply:
    """A request; closed exactly once, however it ends."""

    def __init__(self, event: Event, metrics: Metrics, key: str | None = None) -> None:
        """`key` is the name of the client's key."""
        self.model: str | None = None
        self._key = {} if key is None else {"key": key}
        self.release: Callable[[], None] = lambda: None
        self.status = CLIENT_GONE  # until the last byte is sent
        self._answers: list[Answer | foreign.Answer] = []
        self._trace = Trace()
        self._prompt_tokens = 0
        self._event, self._metrics = event, metrics
        self._last = 0.0  # when a piece came
        self._waits = False  # for its first token
        self._began = time.monotonic()
        self._closed = False

    async def begin(self, model: Model, template: Template, wanted: Parameters, route: str) -> None:
        """Prepare the answers; workers are asked when they are iterated over. Raises ApiError."""
        prompt = await _prompt(template, wanted, route)
        try:
            await model.ready()
        except (NoWorker, Broken) as error:
            raise failed(error) from None
        sampling = wanted.sampling
        try:
            asked = sampling.max_tokens
            default = COMPLETION_TOKENS if route == COMPLETIONS else None
            most = limit(model.context, len(prompt), asked or default, clamp=asked is None)
        except (PromptTooLong, AnswerTooLong) as error:
            given = "messages" if route == CHAT else "prompt"
            param = "max_tokens" if isinstance(error, AnswerTooLong) else given
            raise ApiError(400, str(error), code="context_length_exceeded", param=param) from None
        if route == COMPLETIONS and max(prompt, default=0) >= model.vocabulary:
            raise ApiError(
                400, f"prompt has token ids of {model.vocabulary} and more, which the model does not have",
                code="invalid_value", param="prompt",
            )  # fmt: skip
        begun = wanted.answer_token_ids
        if max(begun, default=0) >= model.vocabulary or len(begun) > most:
            raise ApiError(
                400, f"answer_token_ids are more than {most}, or of another model", code="invalid_value",
                param="answer_token_ids",
            )  # fmt: skip
        seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        options: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if wanted.logprobs is not None:
            options["logprobs"] = wanted.logprobs
        for index in range(wanted.n):
            own = {**options, "seed": seed + index}
            if route == CHAT:
                text = chat_text(template, wanted.messages, prompt, sampling.stop)
            else:
                text = continued_text(template, prompt, sampling.stop)
            some = model.answer(prompt, most, own, self._trace, begun)
            if begun:
                some = _gone_on(begun, some, most, template.stop_ids)
            self._answers.append(Answer(some, text, template.stop_ids))
        self._prompt_tokens = len(prompt)
        self._waits = True
        self._metrics.waiting.labels(self.model).inc()
        self._include_usage = wanted.include_usage
        self._detailed = wanted.logprobs is not None or wanted.return_token_ids
        named = fingerprint(model.digest, template)
        about = (wanted.model, named, template.tokenizer.named, wanted.logprobs is not None)
        ids = prompt if wanted.return_token_ids else None
        self._shapes: Chat | Completion
        self._shapes = Chat(*about, wanted.return_token_ids) if route == CHAT else Completion(*about, ids)

    def begin_elsewhere(self, model: Foreign, wanted: Parameters, route: str) -> None:
        """Prepare answers of engines of others, which give text alone. Raises ApiError."""
        for name, value in (("logprobs", wanted.logprobs is not None), ("return_token_ids", wanted.return_token_ids)):
            if value:
                raise unsupported(name, "leave it out for this model, whose engine is not vtools'")
        asked = {"messages": wanted.messages} if route == CHAT else {"prompt": wanted.prompt}
        for index in range(wanted.n):
            seed = None if wanted.sampling.seed is None else wanted.sampling.seed + index
            sampling = replace(wanted.sampling, seed=seed)
            self._answers.append(foreign.Answer(model, _PATHS[route], asked, sampling, self._trace))
        self._waits = True
        self._metrics.waiting.labels(self.model).inc()
        self._include_usage, self._detailed = wanted.include_usage, False
        about = (wanted.model, "another-engine", str, False)
        self._shapes = Chat(*about) if route == CHAT else Completion(*about, None)

    async def whole(self, request: Request) -> Response:
        """The reply at once; generation stops if the client disconnects."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        collected = asyncio.create_task(_together([self._collected(answer) for answer in self._answers]))
        watched = asyncio.create_task(watch())
        try:
            await asyncio.wait([collected, watched], return_when=asyncio.FIRST_COMPLETED)
            if not collected.done():
                self.close(CLIENT_GONE)
                return Response(status_code=CLIENT_GONE)
            texts = collected.result()
        except (NoWorker, Broken, Refused) as error:
            raise failed(error) from None
        finally:
            for task in (collected, watched):
                task.cancel()
            await asyncio.wait([collected, watched])
        self.close(200)
        choices = [
            self._shapes.choice(index, pieces, answer.finish)
            for index, (pieces, answer) in enumerate(zip(texts, self._answers, strict=True))
        ]
        return json_response(self._shapes.whole(choices, self.usage()))

    def events(self) -> Response:
        """The reply as server-sent events."""
        return _Events(self._chunks(), self)

    async def _chunks(self) -> AsyncIterator[bytes]:
        """A stream that breaks off ends in an error and has no finish_reason."""
        shapes = self._shapes
        usage = {"usage": None} if self._include_usage else {}

        def data(choice: dict[str, Any]) -> bytes:
            return _data(shapes.chunk([choice], **usage))

        for index in range(len(self._answers)):
            if (first := shapes.begin(index)) is not None:
                yield data(first)
        try:
            async for index, piece in _interleaved(self._answers):
                if piece is not None:
                    self._timed()
                    if piece.text or self._detailed:
                        yield data(shapes.piece(index, piece))
                    continue
                finish = self._answers[index].finish
                assert finish is not None, "an answer that has not ended must not look finished"
                yield data(shapes.end(index, finish))
        except Exception as error:
            told = failed(error)
            self.status = told.status
            yield _data(told.body())
            return
        if self._include_usage:
            yield _data(shapes.chunk([], usage=self.usage()))
        self.status = 200
        yield b"data: [DONE]\n\n"

    async def _collected(self, answer: Answer | foreign.Answer) -> list[Piece]:
        pieces = []
        async for piece in answer:
            self._timed()
            pieces.append(piece)
        return pieces

    def _timed(self) -> None:
        """Note when a piece came."""
        now = time.monotonic()
        self._waited()
        times = self._metrics.between if self._last else self._metrics.first
        times.labels(self.model).observe(now - (self._last or self._began))
        self._last = now

    def _waited(self) -> None:
        """Count the request no more among those without a token."""
        if self._waits:
            self._waits = False
            self._metrics.waiting.labels(self.model).dec()

    def usage(self) -> dict[str, int]:
        """The tokens so far."""
        answered = sum(answer.count for answer in self._answers)
        elsewhere = (answer.prompt_tokens for answer in self._answers if isinstance(answer, foreign.Answer))
        prompt = max(elsewhere, default=self._prompt_tokens)
        return {"prompt_tokens": prompt, "completion_tokens": answered, "total_tokens": prompt + answered}

    def close(self, status: int) -> None:
        """Write the event."""
        if self._closed:
            return
        self._closed = True
        self._waited()
        self.release()
        usage = self.usage()
        if self.model is not None:
            self._metrics.requests.labels(self.model, str(status)).inc()
            for kind in ("prompt", "completion"):
                self._metrics.tokens.labels(self.model, kind).inc(usage[f"{kind}_tokens"])
        self._event(
            {
                "event": "request",
                **self._key,
                "model": self.model,
                "status": status,
                "finish": self._answers[0].finish if self._answers else None,
                "workers": self._trace.workers,
                "resumes": self._trace.resumes,
                "prompt_tokens": usage["prompt_tokens"],
                "completion_tokens": usage["completion_tokens"],
                "ms": round((time.monotonic() - self._began) * 1000),
            }
        )


class _Events(StreamingResponse):
    """Server-sent events that close their reply even if the client leaves before the first, with signs of life."""

    def __init__(self, chunks: AsyncIterator[bytes], reply: Reply) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.close(self._reply.status)

    async def stream_response(self, send: Send) -> None:
        """Send the events, and comments while there are none."""
        sent = time.monotonic()

        async def noted(message: Message) -> None:
            nonlocal sent
            sent = time.monotonic()
            await send(message)

        async def keep_alive() -> None:
            while True:
                await asyncio.sleep(KEEPALIVE - (time.monotonic() - sent))
                if time.monotonic() - sent >= KEEPALIVE:
                    await noted({"type": "http.response.body", "body": b": keepalive\n\n", "more_body": True})

        alive = asyncio.create_task(keep_alive())
        try:
            await super().stream_response(noted)
        finally:
            alive.cancel()


def failed(error: Exception) -> ApiError:
    """What a client is told of an answer that could not be written."""
    if isinstance(error, NoWorker | Broken):
        code = "no_worker" if isinstance(error, NoWorker) else "answer_lost"
        return ApiError(503, str(error), code=code, headers={"retry-after": "1"})
    if isinstance(error, Refused):
        return ApiError(400, str(error), code="refused", param="prompt")
    say("serve", f"{type(error).__name__}: {error}")
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def json_response(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An object as a response."""
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def _gone_on(
    begun: list[int], rest: AsyncGenerator[Some], most: int, stop_ids: frozenset[int]
) -> AsyncGenerator[Some]:
    """The answer that has begun with these ids elsewhere, from its start."""
    async with contextlib.aclosing(rest):
        ended = begun[-1] in stop_ids
        finish = "stop" if ended else "length" if len(begun) == most else None
        yield Some([Token(number) for number in begun], finish)
        if finish is None:
            async for some in rest:
                yield some


async def _prompt(template: Template, wanted: Parameters, route: str) -> list[int]:
    """The ids to continue. Raises ApiError."""
    if route == CHAT:
        try:
            return await run_in_threadpool(template.prompt, wanted.messages)
        except Reject as reject:
            raise ApiError(400, reject.detail, code=reject.reason, param="messages") from None
    if isinstance(wanted.prompt, str):
        encoded = await run_in_threadpool(template.tokenizer.backend.encode, wanted.prompt)
        return list(encoded.ids)
    return wanted.prompt


async def _together(works: list[Any]) -> list[Any]:
    """The results of coroutines; where one fails, the others end."""
    async with contextlib.AsyncExitStack() as stack:
        tasks = [asyncio.ensure_future(work) for work in works]
        for task in tasks:
            stack.callback(task.cancel)
        return await asyncio.gather(*tasks)


async def _interleaved(answers: list[Answer | foreign.Answer]) -> AsyncIterator[tuple[int, Piece | None]]:
    """The pieces of several answers by number, as they come; None after the last of each."""
    if len(answers) == 1:
        async for piece in answers[0]:
            yield 0, piece
        yield 0, None
        return
    arrived: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue(len(answers))

    async def pump(index: int, answer: Answer | foreign.Answer) -> None:
        try:
            async for piece in answer:
                await arrived.put((index, piece))
            await arrived.put((index, None))
        except Exception as error:
            await arrived.put((index, error))

    tasks = [asyncio.ensure_future(pump(index, answer)) for index, answer in enumerate(answers)]
    try:
        left = len(answers)
        while left:
            index, found = await arrived.get()
            if isinstance(found, Exception):
                raise found
            left -= found is None
            yield index, found
    finally:
        for task in tasks:
            task.cancel()
