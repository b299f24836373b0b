# ruff: noqa: TID253  imported by the edge alone
"""What workers and their keepers ask of an edge, signed with the join token: leases, the status, to drain a worker."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from vtools.serve import lease, signatures
from vtools.serve.admission import is_here
from vtools.serve.errors import SHOWN, ApiError
from vtools.serve.fleet import Fleet
from vtools.serve.foreign import Engines
from vtools.serve.reply import json_response
from vtools.serve.signatures import DRAIN, LEASE, STATUS

BODY = 1 << 17  # bytes


def routes(fleet: Fleet, engines: Engines, token: bytes, host: str, loopback: bool) -> list[Route]:
    """The routes; `host` is what the edge listens on, and `loopback` whether only this machine reaches it."""

    def signed(handler: Callable[[Any, str], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            peer = request.client.host if request.client else "?"
            try:
                body = await _checked(request)
                return json_response(handler(body, peer))
            except ClientDisconnect:
                return Response(status_code=400)  # which nobody reads
            except (ApiError, signatures.Unsigned, lease.BadLease) as error:
                if request.url.path == LEASE:
                    fleet.stranger(peer, str(error))
                told = error if isinstance(error, ApiError) else ApiError(403, str(error), code="refused")
                return json_response(told.body(), told.status)

        return answer

    async def _checked(request: Request) -> Any:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY:
                raise ApiError(413, f"the body is larger than {BODY} bytes", code="body_too_large")
        if not token and not loopback:
            raise ApiError(
                403, f"this edge takes no workers: start it with {signatures.TOKEN} set", code="no_join_token"
            )
        if not token and not is_here(request.headers.get("host", ""), host):
            raise ApiError(403, "this edge answers to localhost only", code="forbidden_host")
        signatures.check(token, request.url.path, body, request.headers)
        try:
            return orjson.loads(body or b"{}")
        except orjson.JSONDecodeError as error:
            raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None

    def drain(body: Any, peer: str) -> dict[str, Any]:
        name = str(body.get("worker", "") if isinstance(body, dict) else "")
        if not fleet.drain(name):
            raise ApiError(404, f"no worker {name[:SHOWN]!r}; see vtools serve --status", code="no_such_worker")
        return {"draining": name}

    def status(body: Any, peer: str) -> dict[str, Any]:
        found = fleet.status()
        return {**found, "workers": found["workers"] + engines.status()}

    return [
        Route(LEASE, signed(lambda body, peer: fleet.beat(lease.read(body), peer)), methods=["POST"]),
        Route(STATUS, signed(status), methods=["POST"]),
        Route(DRAIN, signed(drain), methods=["POST"]),
    ]
