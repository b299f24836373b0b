# ruff: noqa: TID253  imported by the edge alone
"""The OpenAI API over the workers of each model, as an ASGI application."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from vtools.inference.identity import fingerprint
from vtools.models.template import Template
from vtools.serve import body
from vtools.serve.admission import Admission, middleware
from vtools.serve.errors import SHOWN, ApiError
from vtools.serve.foreign import Foreign
from vtools.serve.keys import Key
from vtools.serve.metrics import TYPE, Metrics
from vtools.serve.openapi import openapi
from vtools.serve.parameters import CHAT, COMPLETIONS, parse
from vtools.serve.reply import CLIENT_GONE, Event, Reply, failed, json_response
from vtools.serve.upstream import Model

LOOK = 0.05  # seconds between two looks


class Api:
    """The routes. Each model writes at most `most` answers at a time, running and waiting.

    For `learning` seconds a model that is not known yet is waited for: its workers will say that they are there.
    """

    def __init__(
        self,
        models: dict[str, tuple[Model, Template]],
        *,
        admission: Admission,
        origins: list[str],
        most: int,
        event: Event,
        metrics: Metrics,
        more: Sequence[Route] = (),
        engines: Mapping[str, Foreign] | None = None,
        learning: float = 0.0,
    ) -> None:
        self._models, self._admission, self._most, self._event = models, admission, most, event
        self._metrics, self._engines = metrics, {} if engines is None else engines
        self._taken: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._draining = False
        self._started, self._learns_until = int(time.time()), time.monotonic() + learning
        routes = [
            Route("/v1/chat/completions", self._answer(self._chat), methods=["POST"]),
            Route("/v1/completions", self._answer(self._completions), methods=["POST"]),
            Route("/v1/models", self._answer(self._list), methods=["GET"]),
            Route("/v1/models/{name:path}", self._answer(self._model), methods=["GET"]),
            Route("/openapi.json", self._answer(self._openapi), methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._answer(self._counted), methods=["GET"]),
            Route("/ready", self._ready, methods=["GET"]),
            *more,
        ]
        self.application = Starlette(
            routes=routes, middleware=middleware(origins), exception_handlers={HTTPException: _no_route}
        )

    def _answer(
        self, handler: Callable[[Request, Key], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler: only authorised clients reach it, and its errors have the API's shape."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request, self._admission.check(request))
            except ApiError as error:
                return json_response(error.body(), error.status, error.headers)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except Exception as error:
                return json_response(failed(error).body(), 500)

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
                model.close()

    async def _health(self, request: Request) -> Response:
        return json_response({"status": "ok", "in_flight": sum(self._taken.values())})

    async def _counted(self, request: Request, key: Key) -> Response:
        return Response(self._metrics.text(), media_type=TYPE)

    async def _ready(self, request: Request) -> Response:
        up = {name: len(model.workers) for name, (model, _) in self._models.items()}
        for name, engines in self._engines.items():
            up[name] = up.get(name, 0) + sum(engine.up for engine in engines.engines.values())
        return json_response({"workers": up}, 200 if all(up.values()) and not self._draining else 503)

    async def _openapi(self, request: Request, key: Key) -> Response:
        return json_response(openapi())

    async def _learned(self, name: str | None = None) -> None:
        """Wait for a model, or for any, while a new edge has not heard of all its workers yet."""
        while time.monotonic() < self._learns_until:
            if name in self._models or name in self._engines or (name is None and (self._models or self._engines)):
                return
            await asyncio.sleep(LOOK)

    async def _list(self, request: Request, key: Key) -> Response:
        await self._learned()
        return json_response({"object": "list", "data": [self._describe(name) for name in self._names(key)]})

    async def _model(self, request: Request, key: Key) -> Response:
        name = request.path_params["name"]
        self._model_of(name, key)
        return json_response(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": self._started, "owned_by": "vtools"}
        if name not in self._models:
            return about
        model, template = self._models[name]
        return {**about, "max_model_len": model.context, "system_fingerprint": fingerprint(model.digest, template)}

    def _names(self, key: Key) -> Iterator[str]:
        """The models that a key may ask."""
        return (name for name in dict.fromkeys((*self._models, *self._engines)) if key.allows(name))

    def _model_of(self, name: str, key: Key) -> tuple[Model, Template] | Foreign:
        if name not in self._names(key):
            known = ", ".join(self._names(key)) or "none: no worker has joined yet"
            raise ApiError(
                404, f"no model {name[:SHOWN]!r}; choose one of {known}", code="model_not_found", param="model"
            )
        return self._models[name] if name in self._models else self._engines[name]

    async def _chat(self, request: Request, key: Key) -> Response:
        return await self._reply(request, key, CHAT)

    async def _completions(self, request: Request, key: Key) -> Response:
        return await self._reply(request, key, COMPLETIONS)

    async def _reply(self, request: Request, key: Key, route: str) -> Response:
        reply = Reply(self._event, self._metrics, key.name)
        try:
            key.take()
            wanted = parse(await body.read(request), route)
            await self._learned(wanted.model)
            model = self._model_of(wanted.model, key)
            reply.model = wanted.model
            if self._draining:
                raise ApiError(503, "the server is stopping", code="stopping", headers={"retry-after": "5"})
            if wanted.n > self._most:
                raise ApiError(
                    400, f"n is {wanted.n}, and the server writes {self._most} answers at a time",
                    code="invalid_value", param="n",
                )  # fmt: skip
            if self._taken[wanted.model] + wanted.n > self._most:
                raise ApiError(
                    429, f"{wanted.model} writes {self._taken[wanted.model]} of at most {self._most} answers already",
                    code="queue_full", headers={"retry-after": "1"},
                )  # fmt: skip
            self._taken[wanted.model] += wanted.n
            self._metrics.in_flight.labels(wanted.model).inc()
            reply.release = lambda: self._release(wanted.model, wanted.n)
            if isinstance(model, Foreign):
                reply.begin_elsewhere(model, wanted, route)
            else:
                await reply.begin(*model, wanted, route)
            return reply.events() if wanted.stream else await reply.whole(request)
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

    def _release(self, model: str, answers: int) -> None:
        self._taken[model] -= answers
        self._metrics.in_flight.labels(model).dec()
        self._idle.set()


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:SHOWN]}: {error.detail}"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    headers = dict(error.headers or {})
    if allowed := headers.get("Allow"):
        message += f"; use {allowed}"
    return json_response(ApiError(error.status_code, message, code=code).body(), error.status_code, headers)
