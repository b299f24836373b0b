# ruff: noqa: TID253  imported by the worker alone
"""A worker's leases, renewed with every edge by the loop that also answers requests: a frozen worker has none."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

import httpx2
import orjson

from vtools.process import say
from vtools.serve import signatures
from vtools.serve.lease import BEAT
from vtools.serve.signatures import LEASE

SILENT = 3.0  # seconds for an edge to answer
AGAIN = 1.0  # seconds after a beat that failed


class Beats:
    """The leases of one worker; `lease` gives one as JSON, or None while the engine does not move."""

    def __init__(
        self, edges: list[str], token: bytes, lease: Callable[[], dict[str, Any] | None], drain: Callable[[], None]
    ) -> None:
        self._edges = {edge: asyncio.Event() for edge in edges}  # set when a lease is due at once
        self._token, self._lease, self._drain = token, lease, drain
        self._told: dict[str, int] = dict.fromkeys(edges, 0)
        self._failures: dict[str, int] = dict.fromkeys(edges, 0)
        self._states: dict[str, str] = {}

    async def run(self) -> None:
        """Send leases, for ever."""
        await asyncio.gather(*map(self._keep, self._edges))

    async def now(self) -> None:
        """Send a lease to every edge at once, and wait until they have it, or cannot be reached."""
        before = {edge: self._told[edge] + self._failures[edge] for edge in self._edges}
        for due in self._edges.values():
            due.set()
        # A beat may be under way with what was true before: the second from now has what is true.
        while any(self._told[edge] + self._failures[edge] < count + 2 for edge, count in before.items()):
            for due in self._edges.values():
                due.set()
            await asyncio.sleep(0.01)

    async def _keep(self, edge: str) -> None:
        context = ssl.create_default_context()
        async with httpx2.AsyncClient(verify=context, trust_env=False, timeout=SILENT) as client:
            while True:
                pause = BEAT
                if (lease := self._lease()) is not None:
                    pause = BEAT if await self._beat(client, edge, lease) else AGAIN
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._edges[edge].wait(), pause)
                self._edges[edge].clear()

    async def _beat(self, client: httpx2.AsyncClient, edge: str, lease: dict[str, Any]) -> bool:
        """Send a lease; whether the edge has taken it."""
        body = orjson.dumps(lease)
        headers = signatures.headers(self._token, LEASE, body)
        try:
            reply = await client.post(f"{edge}{LEASE}", content=body, headers=headers)
            told = orjson.loads(reply.content)
            if reply.status_code != 200:
                state, reason = "refused", str(told["error"]["message"])
            else:
                state, reason = str(told["state"]), str(told["reason"])
                if told["drain"]:
                    self._drain()
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            self._failures[edge] += 1
            self._say(edge, f"no answer ({error or type(error).__name__})")
            return False
        self._told[edge] += 1
        self._say(edge, f"{state}: {reason}" if reason else state)
        return state != "refused"

    def _say(self, edge: str, state: str) -> None:
        if state != "checking" and self._states.get(edge) != state:
            say("serve", f"{edge}: {state}")
            self._states[edge] = state
