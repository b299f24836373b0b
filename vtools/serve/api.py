# ruff: noqa: TID253  imported by the edge alone
"""The OpenAI API over the workers of each model, as an ASGI application."""

import asyncio
import contextlib
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from vtools.inference.detokenize import Detokenizer
from vtools.models.template import Template, is_continued
from vtools.process import say
from vtools.records.jsonl import Reject
from vtools.serve import body
from vtools.serve.admission import Admission, middleware
from vtools.serve.answer import Answer
from vtools.serve.errors import SHOWN, ApiError, unsupported
from vtools.serve.openapi import openapi
from vtools.serve.parameters import CHAT, COMPLETIONS, Parameters, parse
from vtools.serve.upstream import Broken, Model, NoWorker, Refused, Trace

CLIENT_GONE = 499  # nginx's status for it; appears only in our events
BEFORE = 16  # tokens of a continued text that are decoded with what follows, on which its spaces depend

Event = Callable[[dict[str, Any]], None]


class Api:
    """The routes. Each model accepts at most `most` requests at a time, running and waiting."""

    def __init__(
        self,
        models: dict[str, tuple[Model, Template]],
        *,
        admission: Admission,
        origins: list[str],
        most: int,
        event: Event,
    ) -> None:
        self._models, self._admission, self._most, self._event = models, admission, most, event
        self._taken = dict.fromkeys(models, 0)
        self._idle = asyncio.Event()
        self._draining = False
        self._started = int(time.time())
        routes = [
            Route("/v1/chat/completions", self._answer(self._chat), methods=["POST"]),
            Route("/v1/completions", self._answer(self._completions), methods=["POST"]),
            Route("/v1/models", self._answer(self._list), methods=["GET"]),
            Route("/v1/models/{name:path}", self._answer(self._model), methods=["GET"]),
            Route("/openapi.json", self._answer(self._openapi), methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/ready", self._ready, methods=["GET"]),
        ]
        self.application = Starlette(
            routes=routes, middleware=middleware(origins), exception_handlers={HTTPException: _no_route}
        )

    def _answer(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler: only authorised clients reach it, and its errors have the API's shape."""

        async def answer(request: Request) -> Response:
            try:
                self._admission.check(request)
                return await handler(request)
            except ApiError as error:
                return _json(error.body(), error.status, error.headers)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except Exception as error:
                return _json(_failed(error).body(), 500)

        return answer

    async def drain(self, grace: float) -> None:
        """Take no new requests; wait for those that run, and after `grace` seconds end them with an error."""
        self._draining = True
        for seconds in (grace, 1.0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while any(self._taken.values()):
                        self._idle.clear()
                        await self._idle.wait()
            for model, _ in self._models.values():
                await model.close()

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok", "in_flight": sum(self._taken.values())})

    async def _ready(self, request: Request) -> Response:
        up = {name: len(model.workers) for name, (model, _) in self._models.items()}
        return _json({"workers": up}, 200 if all(up.values()) and not self._draining else 503)

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi())

    async def _list(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._describe(name) for name in self._models]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._model_of(name)
        return _json(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": self._started, "owned_by": "vtools"}
        return {**about, "max_model_len": self._models[name][0].context}

    def _model_of(self, name: str) -> tuple[Model, Template]:
        if name not in self._models:
            known = ", ".join(self._models)
            raise ApiError(
                404, f"no model {name[:SHOWN]!r}; choose one of {known}", code="model_not_found", param="model"
            )
        return self._models[name]

    async def _chat(self, request: Request) -> Response:
        reply = _Reply(self._event)
        try:
            wanted = parse(await body.read(request), CHAT)
            _refuse_what_is_missing(wanted)
            model, template = self._model_of(wanted.model)
            reply.model = wanted.model
            if self._draining:
                raise ApiError(503, "the server is stopping", code="stopping", headers={"retry-after": "5"})
            if self._taken[wanted.model] >= self._most:
                later = {"retry-after": "1"}
                raise ApiError(
                    429, f"{wanted.model} has {self._most} requests already", code="queue_full", headers=later
                )
            self._taken[wanted.model] += 1
            reply.release = lambda: self._release(wanted.model)
            reply.answer = await _begin(model, template, wanted, reply.trace)
            if wanted.stream:
                return _Events(_chunks(reply, wanted), reply)
            return await _whole(request, reply, wanted)
        except ApiError as error:
            reply.close(error.status)
            raise
        except ClientDisconnect:  # before the end of its request
            reply.close(CLIENT_GONE)
            raise
        except Exception:
            reply.close(500)
            raise
        except BaseException:  # the task was cancelled
            reply.close(CLIENT_GONE)
            raise

    async def _completions(self, request: Request) -> Response:
        wanted = parse(await body.read(request), COMPLETIONS)
        self._model_of(wanted.model)
        _refuse_what_is_missing(wanted)
        raise AssertionError("all completions are refused")

    def _release(self, model: str) -> None:
        self._taken[model] -= 1
        self._idle.set()


class _Reply:
    """One chat request from its start to its event; closed exactly once, however it ends."""

    def __init__(self, event: Event) -> None:
        self.model: str | None = None
        self.answer: Answer | None = None
        self.trace = Trace()
        self.release: Callable[[], None] = lambda: None
        self.status = CLIENT_GONE  # until the last byte is sent
        self._event = event
        self._began = time.monotonic()
        self._closed = False

    def usage(self) -> dict[str, int]:
        counts = self.answer.usage if self.answer else {"prompt_tokens": 0, "completion_tokens": 0}
        return {**counts, "total_tokens": counts["prompt_tokens"] + counts["completion_tokens"]}

    def close(self, status: int) -> None:
        if self._closed:
            return
        self._closed = True
        self.release()
        usage = self.usage()
        self._event(
            {
                "event": "request",
                "model": self.model,
                "status": status,
                "finish": self.answer.finish if self.answer else None,
                "workers": self.trace.workers,
                "resumes": self.trace.resumes,
                "prompt_tokens": usage["prompt_tokens"],
                "completion_tokens": usage["completion_tokens"],
                "ms": round((time.monotonic() - self._began) * 1000),
            }
        )


class _Events(StreamingResponse):
    """Server-sent events that close their reply even if the client leaves before the first."""

    def __init__(self, chunks: AsyncIterator[bytes], reply: _Reply) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.close(self._reply.status)


def _refuse_what_is_missing(wanted: Parameters) -> None:
    """Raise ApiError for what is valid, but not carried out yet."""
    if wanted.prompt:
        raise unsupported("prompt", "ask /v1/chat/completions")
    if wanted.n > 1:
        raise unsupported("n", "leave it out, or send 1")
    if wanted.logprobs is not None:
        raise unsupported("logprobs", "leave it out, or send false")


async def _begin(model: Model, template: Template, wanted: Parameters, trace: Trace) -> Answer:
    """An answer whose first worker is asked when it is iterated over."""
    try:
        prompt = await run_in_threadpool(template.prompt, wanted.messages)
    except Reject as reject:
        raise ApiError(400, reject.detail, code=reject.reason, param="messages") from None
    sampling = wanted.sampling
    try:
        await model.ready()
    except (NoWorker, Broken) as error:
        raise _failed(error) from None
    limit = _limit(model.context, len(prompt), sampling.max_tokens)
    options = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": secrets.randbits(63) if sampling.seed is None else sampling.seed,
        "return_token_ids": True,
    }
    stops = (*template.stop_strings, *sampling.stop)
    lead, before = ("", prompt[-BEFORE:]) if is_continued(wanted.messages) else (template.answer_lead, [])
    text = Detokenizer(template.tokenizer.decode, stops, lead, before)
    return Answer(model.answer(prompt, limit, options, trace), text, len(prompt), template.stop_ids)


def _limit(context: int, prompt: int, wanted: int | None) -> int:
    """How many tokens an answer may have after a prompt of so many. Raises ApiError."""
    available = context - prompt
    if available < 1:
        message = f"the prompt has {prompt} tokens and the context {context}: no space for an answer"
        raise ApiError(400, message, code="context_length_exceeded", param="messages")
    if wanted is not None and wanted > available:
        message = (
            f"max_tokens is {wanted}, and the prompt of {prompt} tokens leaves {available} of the context of {context}:"
            " lower max_tokens, or leave it out"
        )
        raise ApiError(400, message, code="context_length_exceeded", param="max_tokens")
    return available if wanted is None else wanted


def _failed(error: Exception) -> ApiError:
    """What a client is told of an answer that could not be written."""
    if isinstance(error, NoWorker | Broken):
        code = "no_worker" if isinstance(error, NoWorker) else "answer_lost"
        return ApiError(503, str(error), code=code, headers={"retry-after": "1"})
    if isinstance(error, Refused):
        return ApiError(400, str(error), code="refused", param="messages")
    say("serve", f"{type(error).__name__}: {error}")
    return ApiError(500, "the server failed; its log says why", code="internal_error")


async def _whole(request: Request, reply: _Reply, wanted: Parameters) -> Response:
    """The whole answer at once; generation stops if the client disconnects."""
    answer = reply.answer
    assert answer is not None

    async def collect() -> str:
        return "".join([piece async for piece in answer])

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    collected, watched = asyncio.create_task(collect()), asyncio.create_task(watch())
    try:
        await asyncio.wait([collected, watched], return_when=asyncio.FIRST_COMPLETED)
        if not collected.done():
            reply.close(CLIENT_GONE)
            return Response(status_code=CLIENT_GONE)
        text = collected.result()
    except (NoWorker, Broken, Refused) as error:
        raise _failed(error) from None
    finally:
        for task in (collected, watched):
            task.cancel()
        await asyncio.wait([collected, watched])
    reply.close(200)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
    return _json({**_head("chat.completion", wanted.model), "choices": [choice], "usage": reply.usage()})


async def _chunks(reply: _Reply, wanted: Parameters) -> AsyncIterator[bytes]:
    """The answer as server-sent events. A stream that breaks off ends in an error and has no finish_reason."""
    answer = reply.answer
    assert answer is not None
    head = _head("chat.completion.chunk", wanted.model)
    usage = {"usage": None} if wanted.include_usage else {}

    def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**head, "choices": [choice], **usage})

    yield chunk({"role": "assistant", "content": ""})
    try:
        async for piece in answer:
            yield chunk({"content": piece})
    except Exception as error:
        failed = _failed(error)
        reply.status = failed.status
        yield _data(failed.body())
        return
    yield chunk({}, answer.finish)
    if wanted.include_usage:
        yield _data({**head, "choices": [], "usage": reply.usage()})
    reply.status = 200
    yield b"data: [DONE]\n\n"


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _json(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:SHOWN]}: {error.detail}"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    headers = dict(error.headers or {})
    if allowed := headers.get("Allow"):
        message += f"; use {allowed}"
    return _json(ApiError(error.status_code, message, code=code).body(), error.status_code, headers)
