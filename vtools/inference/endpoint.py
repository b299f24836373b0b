"""A client for any OpenAI-compatible server: retries, timeouts, and parameters that servers refuse."""

import contextlib
import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from vtools.inference import retry, trouble
from vtools.inference.address import Server, one_line
from vtools.inference.budget import Bill, Budget
from vtools.inference.client import TOKENS, Answer, Messages, Sampling, Slot
from vtools.inference.trouble import Trouble
from vtools.process import Failure, UsageFailure, shown

START_WAIT = 30.0  # seconds to wait until a server on this machine listens
LISTING = 10.0  # seconds of silence while a server lists its models, which takes it no time
LISTING_RETRIES = 3
DROPPED = ("temperature", "top_p", "seed")  # parameters that some models refuse, and can be asked without


class EndpointError(Failure):
    """A server gave no answer. `fatal`: every other question would fail the same way."""

    def __init__(self, message: str, status: int | None = None, fatal: bool = False) -> None:
        super().__init__(message)
        self.status, self.fatal = status, fatal


class Endpoint:
    """One server and one of its models. Thread-safe."""

    takes_schema: bool | None = None

    def __init__(
        self, url: str, model: str | None = None, *, timeout: float = 600.0, retries: int = retry.RETRIES,
        start_wait: float = START_WAIT,
    ) -> None:  # fmt: skip
        """`timeout` limits a silence of the server, in seconds. Without `model`, the server must have exactly one."""
        self._server = Server(url)
        self.url, key = self._server.url, self._server.key
        if not key and self._server.is_openai:
            raise Failure(f"{self.url}: OPENAI_API_KEY is not set; set it, or name another server with --base-url")
        import httpx2
        import openai

        self.retries, self.timeout = retries, timeout
        self.budget: Budget | None = None
        self.slot: Slot = contextlib.nullcontext
        self.lacks: set[str] = set()  # parameters that this server refused
        self._learning = threading.Lock()
        self._fingerprint: str | None = None  # of the model, once it was asked for
        self.client = openai.OpenAI(
            base_url=self.url,
            api_key=key or "none",
            # We retry ourselves: the library retries timeouts as often as refusals (600 s six times is an hour), and
            # its waits for Retry-After have no jitter, so all threads would return at once.
            max_retries=0,
            timeout=httpx2.Timeout(timeout, connect=10.0),
            http_client=openai.DefaultHttpxClient(trust_env=False) if self._server.loopback else None,
        )
        if self._server.loopback:
            self._wait_for_start(start_wait)
        self.model = model or self._only_model()

    def identity(self) -> str:
        """The fingerprint that the server lists for its model, else its URL. Raises EndpointError."""
        listed = self._models()
        if not isinstance(listed, Trouble):
            named = (model.get("system_fingerprint") for model in listed if model["id"] == self.model)
            self._fingerprint = next((name for name in named if isinstance(name, str)), None)
        return self._fingerprint or self.url

    def complete(self, messages: Messages, sampling: Sampling) -> Answer:
        """Ask, and wait for the whole answer. Raises EndpointError."""
        started = time.monotonic()
        client = self.client.chat.completions.with_raw_response
        reply = self._ask(self.request(messages, sampling), client.create, lambda raw: completion(raw.text))
        known = self._fingerprint
        if known and reply.get("system_fingerprint", known) != known:
            message = f"{self.url}: another model is served as {self.model} since this run began; repeat the command"
            raise EndpointError(message, fatal=True)
        return answer(reply, round((time.monotonic() - started) * 1000))

    def stream(self, messages: Messages, sampling: Sampling) -> Generator[str]:
        """Ask, and yield the answer as it comes. Retries only before the first piece. Raises EndpointError."""
        import httpx2
        import openai

        request = {**self.request(messages, sampling), "stream": True}
        chunks = self._ask(request, self.client.chat.completions.create, _events)
        finished = False
        try:
            for chunk in chunks:
                for choice in (chunk.choices or [])[:1]:
                    finished = finished or choice.finish_reason is not None
                    if choice.delta and choice.delta.content:
                        yield _text(choice.delta.content)
        except (openai.APIError, httpx2.HTTPError, ValueError) as error:
            raise EndpointError(f"{self.url}: the answer broke off ({one_line(error)})") from None
        finally:
            chunks.close()
        if not finished:
            raise EndpointError(f"{self.url}: the answer broke off (the server closed the connection)")

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def request(self, messages: Messages, sampling: Sampling) -> dict[str, Any]:
        """A request's body, before it is `adapted` to what the server takes."""
        chosen = {name: value for name, value in sampling.options().items() if value is not None}
        if sampling.top_p == 1:
            del chosen["top_p"]
        return {"model": self.model, "messages": messages, **chosen}

    def _ask(self, request: dict[str, Any], send: Callable[..., Any], read: Callable[[Any], Any]) -> Any:
        """Send a request, with retries; `read` gives its result, or a Trouble if that is not a chat completion."""
        import openai

        attempt, most = 0, request.get("max_tokens")
        while True:
            sent = self.adapted(request)
            with self.slot(), self._billed(request["messages"], most) as bill:
                try:
                    reply = read(send(**sent))
                except openai.APIError as error:
                    reply = trouble.of(error)
                if isinstance(reply, Trouble):
                    bill.may_cost = reply.may_cost
                    if reply.fatal and not reply.retries(self.retries, self.timeout):
                        raise self.error(reply, attempt + 1)  # while the slot is held: no other is asked for nothing
                elif isinstance(reply, dict) and (used := _usage(reply)):
                    bill.tokens = used["in"], used["out"]
            if not isinstance(reply, Trouble):
                return reply
            if self.learns(reply, sent):
                continue
            if "max_tokens" in request and asked_too_much(reply):
                # Without a limit of ours the answer ends where the context does, which is below it.
                request = {name: value for name, value in request.items() if name != "max_tokens"}
                continue
            wait = retry.wait(attempt, reply.retries(self.retries, self.timeout), reply.after)
            if wait is None:
                raise self.error(reply, attempt + 1)
            attempt += 1
            time.sleep(wait)

    @contextlib.contextmanager
    def _billed(self, messages: Messages, max_tokens: int | None) -> Iterator[Bill]:
        if self.budget is None:
            yield Bill()
        else:
            with self.budget.call(messages, max_tokens) as bill:
                yield bill

    def adapted(self, request: dict[str, Any]) -> dict[str, Any]:
        """The request without what this server is known to refuse."""
        sent = {name: value for name, value in request.items() if name not in self.lacks}
        if "max_tokens" in request.keys() & self.lacks:
            sent["max_completion_tokens"] = request["max_tokens"]
        return sent

    def learns(self, told: Trouble, sent: dict[str, Any]) -> bool:
        """Note the parameter that a server refuses, if it is one: newer OpenAI models rename `max_tokens`, some servers
        have no `seed`, and some models only one temperature."""
        if told.status not in (400, 422):
            return False
        if "max_tokens" in sent and "max_completion_tokens" in told.said:
            self.lacks.add("max_tokens")
            return True
        refused = next((name for name in DROPPED if name in sent and told.blames(name)), None)
        if refused is None:
            return False
        with self._learning:
            new = refused not in self.lacks
            self.lacks.add(refused)
        if new:
            said = f"vtools: {self.url}: asked without {refused}, which {self.model} refuses: {told.said}"
            print(shown(said), file=sys.stderr)
        return True

    def error(self, told: Trouble, attempts: int = 1) -> EndpointError:
        """The failure after so many attempts, with advice."""
        tries = f" after {attempts} tries" if attempts > 1 else ""
        if told.kind == "silent":
            return EndpointError(f"{self.url}: no answer in time{tries}; raise --timeout")
        if told.kind == "broken":
            message = f"{self.url}: no connection{tries} ({told.said}); is the server running?"
            return EndpointError(message, fatal=told.fatal)
        if told.kind == "odd":
            advice = "; is this the URL of an OpenAI-compatible server?" if told.code == "not_a_server" else ""
            message = f"{self.url}: the reply is not a chat completion{tries}: {told.said}{advice}"
            return EndpointError(message, fatal=told.fatal)
        status = told.status or 0
        advice = ""
        if told.unpaid:
            advice = f"; check the account that {self._server.key_name} belongs to"
        elif status in (401, 403):
            advice = f"; check {self._server.key_name}"
        elif status == 404:
            advice = f"; is {self.model} the right --model, and {self.url} the right --base-url?"
        elif status == 429:
            advice = "; send fewer at a time (-j), or try later"
        elif status >= 500:
            advice = "; see the server's log"
        return EndpointError(f"{self.url}: HTTP {status}{tries}: {told.said}{advice}", status, told.fatal)

    def _wait_for_start(self, seconds: float) -> None:
        """Wait until the port is open: a server started a moment ago may still be loading its model."""
        deadline = time.monotonic() + seconds
        for attempt in itertools.count():
            try:
                socket.create_connection((self._server.host, self._server.port), timeout=5).close()
                return
            except ConnectionRefusedError:
                if time.monotonic() >= deadline:
                    message = (
                        f"{self.url}: no server listens there; start it (vtools serve MODEL) or name another --base-url"
                    )
                    raise EndpointError(message, fatal=True) from None
            except OSError as error:
                raise EndpointError(f"{self.url}: {error.strerror or error}", fatal=True) from None
            if attempt == 0:
                print(f"vtools: waiting for {self.url} to start ({seconds:.0f} s at most)", file=sys.stderr)
            time.sleep(0.2)

    def _models(self) -> list[dict[str, Any]] | Trouble:
        """What the server lists of its models, or why it lists none. Raises EndpointError if it cannot be reached."""
        import openai

        for attempt in itertools.count():
            try:
                raw = self.client.models.with_raw_response.list(timeout=LISTING)
                return [{**model, "id": str(model["id"])} for model in json.loads(raw.text)["data"]]
            except openai.APIError as error:
                told = trouble.of(error)
            except (ValueError, KeyError, TypeError):
                return trouble.in_reply(raw.text)
            wait = retry.wait(attempt, told.retries(min(LISTING_RETRIES, self.retries), LISTING), told.after)
            if wait is None:
                if told.kind == "status" and not retry.is_transient(told.status or 0):
                    return told
                raise self.error(told, attempt + 1)
            time.sleep(wait)
        raise AssertionError

    def _only_model(self) -> str:
        listed = self._models()
        if isinstance(listed, Trouble):
            if listed.status in (401, 403):
                raise self.error(listed, 1)
            raise UsageFailure(f"{self.url}: does not list its models ({listed.said}); name one with --model")
        names = [model["id"] for model in listed]
        if len(names) != 1:
            first = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise UsageFailure(f"{self.url} has {len(names)} models; choose one with --model: {first}")
        return names[0]


def completion(text: str) -> dict[str, Any] | Trouble:
    """The body of a reply, with at least one choice that has a message."""
    try:
        body = json.loads(text)
        if isinstance(body["choices"][0]["message"], dict):
            return body
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    return trouble.in_reply(text)


def answer(reply: dict[str, Any], ms: int, batch: str | None = None) -> Answer:
    """The answer in a reply that `completion` has read."""
    choice, model = reply["choices"][0], reply.get("model")
    text = _text(choice["message"].get("content"))
    named = model if isinstance(model, str) else None
    return Answer(text, choice.get("finish_reason"), _usage(reply), named, ms, _logprobs(choice), batch)


def _events(chunks: Any) -> Any:
    """A stream of events, or why the server sent none."""
    response = chunks.response
    if response.headers.get("content-type", "").startswith(("text/html", "application/json")):
        return trouble.in_reply(response.read().decode("utf-8", "replace"))
    return chunks


def _text(content: Any) -> str:
    """The text of a message: a text, or parts of which those with text count."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _logprobs(choice: dict[str, Any]) -> list[tuple[str, list[tuple[str, float]]]] | None:
    tokens = (choice.get("logprobs") or {}).get("content")
    return tokens and [
        (token["token"], [(each["token"], each["logprob"]) for each in token.get("top_logprobs") or ()])
        for token in tokens
    ]


def _usage(reply: dict[str, Any]) -> dict[str, int] | None:
    """The tokens that a server reports, as numbers, or as texts of digits; None if it reports none."""
    given = reply.get("usage")
    if not isinstance(given, dict):
        return None
    found = {ours: str(given.get(theirs) or 0) for ours, theirs in TOKENS.items()}
    return {name: int(count) for name, count in found.items()} if all(map(str.isdecimal, found.values())) else None


def asked_too_much(told: Trouble) -> bool:
    """Whether a server refused a request only because the context leaves fewer tokens than it asked for."""
    return told.code == "context_length_exceeded" and told.param in ("max_tokens", "max_completion_tokens")
