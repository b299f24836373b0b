"""A client for any OpenAI-compatible server: retries, timeouts, and many requests at a time in the input's order."""

from __future__ import annotations

import email.utils
import itertools
import os
import queue
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from vtools.process import Failure, UsageFailure

Messages = list[dict[str, Any]]
Item = TypeVar("Item")
Result = TypeVar("Result")

SERVE = "http://127.0.0.1:8000/v1"  # where `vtools serve` listens unless told otherwise
OPENAI = "https://api.openai.com/v1"
RETRIES = 6  # 0.5 + 1 + 2 + 4 + 8 + 16 s: half a minute in all
LONGEST_WAIT = 120.0  # seconds; a server that asks for more will not answer in this run
START_WAIT = 30.0  # seconds that a server on this machine is given to begin to listen

TOKENS = {"in": "prompt_tokens", "out": "completion_tokens"}  # ours and OpenAI's names of an answer's usage


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: OpenAI's `finish_reason`, tokens as `{"in", "out"}`, and the name that the server gave its model."""

    text: str
    finish: str | None
    usage: dict[str, int] | None
    model: str | None
    ms: int


class Stream(Protocol):
    """Text in pieces; closing it ends the answer."""

    def __iter__(self) -> Iterator[str]: ...

    def close(self) -> None: ...


class Client(Protocol):
    """What answers: an `Endpoint`, or a model in this process (`vtools.generate.Engine`)."""

    def complete(
        self, messages: Messages, *, max_tokens: int | None, temperature: float, top_p: float,
        seed: int | None = None, stop: Sequence[str] = (),
    ) -> Answer: ...  # fmt: skip

    def stream(
        self, messages: Messages, *, max_tokens: int | None, temperature: float, top_p: float,
        seed: int | None = None, stop: Sequence[str] = (),
    ) -> Stream: ...  # fmt: skip

    def close(self) -> None: ...


class EndpointError(Failure):
    """A server gave no answer. `fatal`: every other question would end the same way."""

    def __init__(self, message: str, status: int | None = None, fatal: bool = False) -> None:
        super().__init__(message)
        self.status, self.fatal = status, fatal


def connect(
    model: str | None, base_url: str | None = None, *, template: str | None = None, timeout: float = 600.0
) -> tuple[Client, str]:
    """The client for `--model` and `--base-url`, and the model's name; where it looks is said in `where`.

    Raises Failure when nothing answers there or the model is not known.
    """
    url = where(model, base_url)
    if url is None:
        from vtools.inference import engine

        return engine.Engine(str(model), template=template), str(model)
    if template:
        raise UsageFailure(f"--template: {url} renders its own prompts; the option is for a model in this process")
    endpoint = Endpoint(url, model, timeout=timeout)
    return endpoint, endpoint.model


def where(model: str | None, base_url: str | None = None) -> str | None:
    """The URL to ask, or None for a model in this process. The first that applies:

    --base-url; a model that is a folder or a .gguf file here; OPENAI_BASE_URL; a hub id (OWNER/NAME or hf:…) in this
    process; api.openai.com if there are a key and a model; `vtools serve` on this machine.
    """
    if base_url:
        return base_url
    if model and (Path(model, "config.json").exists() or (model.endswith(".gguf") and Path(model).exists())):
        return None
    if url := os.environ.get("OPENAI_BASE_URL"):
        return url
    if model and ("/" in model or model.startswith("hf:") or model.endswith(".gguf")):
        return None
    return OPENAI if model and os.environ.get("OPENAI_API_KEY") else SERVE


class Endpoint:
    """One server and one of its models. Threads may share it."""

    def __init__(
        self, url: str, model: str | None = None, *, timeout: float = 600.0, retries: int = RETRIES,
        start_wait: float = START_WAIT,
    ) -> None:  # fmt: skip
        """`timeout` bounds a silence of the server, in seconds. Without a model, the only one of the server is used."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageFailure(f"{url}: not an http(s) URL; for example {SERVE}")
        self.url = url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
        loopback = parts.hostname in ("localhost", "::1") or parts.hostname.startswith("127.")
        key = os.environ.get("OPENAI_API_KEY")
        if not key and parts.hostname == urlsplit(OPENAI).hostname:
            raise Failure(f"{self.url}: OPENAI_API_KEY is not set; --base-url or OPENAI_BASE_URL names another server")
        import httpx2
        import openai

        self.retries = retries
        self._lacks: set[str] = set()  # parameters that this server refused
        self._client = openai.OpenAI(
            base_url=self.url,
            api_key=key or "none",
            # The library retries a request that hangs as often as one that is refused, and 600 s six times is an
            # hour; and its waits for Retry-After have no jitter, so that all threads come back at once.
            max_retries=0,
            timeout=httpx2.Timeout(timeout, connect=10.0),
            # No proxy stands between this machine and itself.
            http_client=openai.DefaultHttpxClient(trust_env=False) if loopback else None,
        )
        if loopback:
            self._wait_for_start(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), start_wait)
        self.model = model or self._only_model()

    def complete(
        self, messages: Messages, *, max_tokens: int | None, temperature: float, top_p: float,
        seed: int | None = None, stop: Sequence[str] = (),
    ) -> Answer:  # fmt: skip
        """Ask, and wait for the whole answer. Raises EndpointError."""
        started = time.monotonic()
        request = self._request(messages, max_tokens, temperature, top_p, seed, stop)
        reply = self._ask(request, lambda reply: reply.choices[0].message)
        usage = reply.usage and {ours: getattr(reply.usage, theirs) or 0 for ours, theirs in TOKENS.items()}
        choice = reply.choices[0]
        elapsed = round((time.monotonic() - started) * 1000)
        return Answer(choice.message.content or "", choice.finish_reason, usage, reply.model, elapsed)

    def stream(
        self, messages: Messages, *, max_tokens: int | None, temperature: float, top_p: float,
        seed: int | None = None, stop: Sequence[str] = (),
    ) -> Generator[str, None, None]:  # fmt: skip
        """Ask, and yield the answer as it comes. Retries only before the first piece. Raises EndpointError."""
        import httpx2
        import openai

        request = self._request(messages, max_tokens, temperature, top_p, seed, stop)
        chunks = self._ask({**request, "stream": True}, lambda chunks: chunks.response)
        finished = False
        try:
            for chunk in chunks:
                for choice in (chunk.choices or [])[:1]:
                    finished = finished or choice.finish_reason is not None
                    if choice.delta and choice.delta.content:
                        yield choice.delta.content
        except (openai.APIError, httpx2.HTTPError, ValueError) as error:
            raise EndpointError(f"{self.url}: the answer broke off ({_one_line(error)})") from None
        finally:
            chunks.close()
        if not finished:
            raise EndpointError(f"{self.url}: the answer broke off (the server closed the connection)")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _request(
        self,
        messages: Messages,
        max_tokens: int | None,
        temperature: float,
        top_p: float,
        seed: int | None,
        stop: Sequence[str],
    ) -> dict[str, Any]:
        request = {"model": self.model, "messages": messages, "temperature": temperature}
        optional = {
            "max_tokens": max_tokens,
            "top_p": top_p if top_p < 1 else None,
            "seed": seed,
            "stop": list(stop) or None,
        }
        return request | {name: value for name, value in optional.items() if value is not None}

    def _ask(self, request: dict[str, Any], probe: Callable[[Any], Any]) -> Any:
        """Send until it is answered; `probe` fails on a reply that is not a chat completion."""
        import openai

        attempt = 0
        while True:
            sent = self._adapted(request)
            try:
                reply = self._client.chat.completions.create(**sent)
                probe(reply)
                return reply
            except (openai.APIError, ValueError, AttributeError, IndexError, TypeError) as error:
                if self._learn(error, sent):
                    continue
                wait = self._wait(error, attempt)
                if wait is None:
                    raise self._error(error, attempt + 1) from None
            attempt += 1
            time.sleep(wait)

    def _adapted(self, request: dict[str, Any]) -> dict[str, Any]:
        sent = {name: value for name, value in request.items() if name not in self._lacks}
        if "max_tokens" in request.keys() & self._lacks:
            sent["max_completion_tokens"] = request["max_tokens"]
        return sent

    def _learn(self, error: Exception, sent: dict[str, Any]) -> bool:
        """Newer OpenAI models want `max_tokens` by another name, and some servers know no `seed`."""
        if getattr(error, "status_code", None) not in (400, 422):
            return False
        said = _said(error)
        refused = {"max_tokens"} if "max_completion_tokens" in said else {"seed"} if "seed" in said else set()
        refused = {name for name in refused if name in sent}
        self._lacks |= refused
        return bool(refused)

    def _wait(self, error: Exception, attempt: int) -> float | None:
        """Seconds until the next attempt, or None to give up."""
        import openai

        if isinstance(error, openai.APITimeoutError):
            allowed = min(1, self.retries)
        elif isinstance(error, openai.APIStatusError):
            transient = error.status_code in (408, 409, 425, 429) or error.status_code >= 500
            allowed = self.retries if transient and error.code != "insufficient_quota" else 0
            asked = retry_after(error.response.headers)
            if asked is not None and attempt < allowed:
                return asked * random.uniform(1, 1.25) if asked <= LONGEST_WAIT else None
        else:
            allowed = self.retries
        return min(0.5 * 2**attempt, 30) * random.uniform(0.75, 1.25) if attempt < allowed else None

    def _error(self, error: Exception, attempts: int) -> EndpointError:
        import openai

        tries = f" after {attempts} tries" if attempts > 1 else ""
        if isinstance(error, openai.APITimeoutError):
            return EndpointError(f"{self.url}: no answer in time{tries}; --timeout gives it longer")
        if isinstance(error, openai.APIConnectionError):
            cause = _one_line(error.__cause__ or error)
            return EndpointError(f"{self.url}: no connection{tries} ({cause}); is the server running?", fatal=True)
        if not isinstance(error, openai.APIStatusError):
            return EndpointError(
                f"{self.url}: the reply is not a chat completion{tries}; is this an OpenAI-compatible URL?"
            )
        status = error.status_code
        advice = ""
        if status in (401, 403):
            advice = "; check OPENAI_API_KEY"
        elif status == 404:
            advice = f"; is {self.model} the right --model, and {self.url} the right --base-url?"
        elif status == 429:
            advice = "; fewer at a time (-j), or later"
        elif status >= 500:
            advice = "; see the server's log"
        fatal = status in (401, 403, 404) or error.code == "insufficient_quota"
        return EndpointError(f"{self.url}: HTTP {status}{tries}: {_said(error)}{advice}", status, fatal)

    def _wait_for_start(self, host: str, port: int, seconds: float) -> None:
        """A server that was started a moment ago still loads its model: wait until its port is open."""
        deadline = time.monotonic() + seconds
        for attempt in itertools.count():
            try:
                socket.create_connection((host, port), timeout=5).close()
                return
            except ConnectionRefusedError:
                if time.monotonic() >= deadline:
                    message = (
                        f"{self.url}: nothing listens there; start it (vtools serve MODEL) or name another --base-url"
                    )
                    raise EndpointError(message, fatal=True) from None
            except OSError as error:
                raise EndpointError(f"{self.url}: {error.strerror or error}", fatal=True) from None
            if attempt == 0:
                print(f"vtools: waiting for {self.url} to start ({seconds:.0f} s at most)", file=sys.stderr)
            time.sleep(0.2)

    def _only_model(self) -> str:
        import openai

        try:
            names = [model.id for model in self._client.models.list().data]
        except (openai.APIError, ValueError, AttributeError, TypeError) as error:
            raise UsageFailure(
                f"{self.url}: does not list its models ({_one_line(error)}); name one with --model"
            ) from None
        if len(names) != 1:
            listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise UsageFailure(f"{self.url} has {len(names)} models; choose one with --model: {listed}")
        return names[0]


def retry_after(headers: Any) -> float | None:
    """The seconds that a server asks to wait (RFC 9110 10.2.3: seconds or a date)."""
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _said(error: Any) -> str:
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return _one_line(body or error.message)


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:300]


def ordered(work: Callable[[Item], Result], items: Iterable[Item], jobs: int = 1) -> Iterator[tuple[Item, Result]]:
    """Yield every item with its result, in the order of the items, `jobs` of them at work at a time.

    Items are read in a thread, no more than `4 * jobs` ahead of what was yielded, so a finished answer never waits
    for more input. What reading or working raises is raised in its place, after all that came before it.
    """
    room = threading.Semaphore(4 * jobs)
    stopped = threading.Event()
    line: queue.SimpleQueue[tuple[Item, Future[Result]] | BaseException | None] = queue.SimpleQueue()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="ask")

    def read() -> None:
        try:
            for item in items:
                room.acquire()
                if stopped.is_set():
                    return
                line.put((item, pool.submit(work, item)))
            line.put(None)
        except BaseException as error:
            line.put(error)

    threading.Thread(target=read, daemon=True, name="reader").start()
    try:
        while (entry := line.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            item, future = entry
            yield item, future.result()
            room.release()
    finally:
        stopped.set()
        room.release()
        pool.shutdown(wait=False, cancel_futures=True)
