# ruff: noqa: TID253  imported by the command alone, once it is about to serve
"""The OpenAI chat API over the workers of each model, as an ASGI application."""

import asyncio
import contextlib
import hmac
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from vtools.inference.detokenize import Detokenizer
from vtools.models.template import Template
from vtools.process import say
from vtools.records.jsonl import Reject
from vtools.serve.answer import Answer
from vtools.serve.request import ApiError, Parameters, parse
from vtools.serve.upstream import Broken, Model, NoWorker, Refused, Trace

BODY = 1 << 20  # bytes of a request
LOCAL = ("localhost", "127.0.0.1", "[::1]")
CLIENT_GONE = 499  # nginx's status for it; appears only in our events

Event = Callable[[dict[str, Any]], None]


class Api:
    """The routes. Each model accepts at most `most` requests at a time, running and waiting."""

    def __init__(self, models: dict[str, tuple[Model, Template]], *, key: str | None, most: int, event: Event) -> None:
        self._models, self._key, self._most, self._event = models, key, most, event
        self._taken = dict.fromkeys(models, 0)
        self._idle = asyncio.Event()
        self._draining = False
        self._started = int(time.time())
        routes = [
            Route("/v1/chat/completions", self._answer(self._chat), methods=["POST"]),
            Route("/v1/models", self._answer(self._list), methods=["GET"]),
            Route("/v1/models/{name:path}", self._answer(self._model), methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
        ]
        self.application = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})

    def _answer(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler: only authorised clients reach it, and its errors have the API's shape."""

        async def answer(request: Request) -> Response:
            try:
                self._admit(request)
                return await handler(request)
            except ApiError as error:
                return _json(error.body(), error.status, error.headers)

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

    def _admit(self, request: Request) -> None:
        if self._key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
                challenge = {"www-authenticate": "Bearer"}
                raise ApiError(401, "a valid API key is needed", code="invalid_api_key", headers=challenge)
        elif request.headers.get("host", "").rpartition(":")[0] not in LOCAL:
            # Without a key, a web page whose host name resolves to this machine must not get in.
            raise ApiError(403, "this server answers to localhost only", code="forbidden_host")

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok", "in_flight": sum(self._taken.values())})

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
            raise ApiError(404, f"no model {name!r}; choose one of {known}", code="model_not_found", param="model")
        return self._models[name]

    async def _chat(self, request: Request) -> Response:
        reply = _Reply(self._event)
        try:
            wanted = parse(await _body(request))
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
        except Exception as error:
            say("serve", f"{type(error).__name__}: {error}")
            reply.close(500)
            raise ApiError(500, "the server failed; its log says why", code="internal_error") from None
        except BaseException:  # the task was cancelled
            reply.close(CLIENT_GONE)
            raise

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
    available = model.context - len(prompt)
    limit = max(available, 1) if sampling.max_tokens is None else sampling.max_tokens
    if not 1 <= limit <= available:
        raise ApiError(
            400,
            f"the prompt has {len(prompt)} tokens and the answer may have {limit}: "
            f"together more than the context of {model.context}",
            code="context_length_exceeded",
            param="messages",
        )
    options = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": secrets.randbits(63) if sampling.seed is None else sampling.seed,
        "stop_token_ids": sorted(template.stop_ids),
    }
    stops = (*template.stop_strings, *sampling.stop)
    text = Detokenizer(template.tokenizer.decode, stops, template.answer_lead)
    return Answer(model.answer(prompt, limit, options, trace), text, len(prompt), template.stop_ids)


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


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page may send forms to any server without a preflight request
        raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= BODY:
            chunks.append(chunk)
        elif size > 16 * BODY:  # read up to this size, so that the client gets our answer
            break
    if size > BODY:
        raise ApiError(413, f"the body is larger than {BODY} bytes", code="body_too_large")
    return b"".join(chunks)


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _json(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _json(ApiError(error.status_code, message, code="not_found").body(), error.status_code)
