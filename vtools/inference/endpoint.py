"""A client for any OpenAI-compatible server: retries, timeouts, and parameters that servers refuse."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from vtools.inference import retry, trouble
from vtools.inference.address import one_line
from vtools.inference.budget import Bill, Budget
from vtools.inference.client import TOKENS, Answer, Messages, Sampling, Slot
from vtools.inference.servers import Servers
from vtools.inference.trouble import Trouble
from vtools.process import Failure, UsageFailure, shown

if TYPE_CHECKING:
    import openai

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
        """`url` may be several with commas between them, of servers of the same models: where one fails, even amid an
        answer, the next goes on. `timeout` limits a silence, in seconds. Without `model`, there must be exactly one.
        """
        self._servers = Servers(url, timeout)
        self.retries, self.timeout = retries, timeout
        self.budget: Budget | None = None
        self.slot: Slot = contextlib.nullcontext
        self.lacks: set[str] = set()  # parameters that this server refused
        self._learning = threading.Lock()
        self._fingerprint: str | None = None  # of the model, once it was asked for
        try:
            self._servers.wait_for_start(start_wait)
        except Failure as failure:
            raise EndpointError(str(failure), fatal=True) from None
        self.model = model or self._only_model()

    @property
    def url(self) -> str:
        """Of the server that is asked."""
        return self._servers.current.server.url

    @property
    def client(self) -> openai.OpenAI:
        """Of the server that is asked."""
        return self._servers.current.client

    def identity(self) -> str:
        """The fingerprint that the server lists for its model, else its URL. Raises EndpointError."""
        listed = self._models()
        if not isinstance(listed, Trouble):
            named = (model.get("system_fingerprint") for model in listed if model["id"] == self.model)
            self._fingerprint = next((name for name in named if isinstance(name, str)), None)
        return self._fingerprint or self._servers.first.server.url

    def complete(self, messages: Messages, sampling: Sampling) -> Answer:
        """Ask, and wait for the whole answer. Raises EndpointError."""
        started = time.monotonic()

        def send(client: openai.OpenAI, sent: dict[str, Any]) -> Any:
            return client.chat.completions.with_raw_response.create(**sent)

        reply = self._ask(self.request(messages, sampling), send, lambda raw: completion(raw.text))
        known = self._fingerprint
        if known and reply.get("system_fingerprint", known) != known:
            message = f"{self.url}: another model is served as {self.model} since this run began; repeat the command"
            raise EndpointError(message, fatal=True)
        return answer(reply, round((time.monotonic() - started) * 1000))

    def stream(self, messages: Messages, sampling: Sampling) -> Generator[str]:
        """Ask, and yield the answer as it comes. Raises EndpointError.

        With one server, it retries only before the first piece; of several, the next goes on with the answer.
        """
        request = {**self.request(messages, sampling), "stream": True}
        if len(self._servers) > 1:
            request["extra_body"] = {"return_token_ids": True}
        said, moves = "", 0
        while True:
            heard = Heard()
            try:
                for piece in heard.through(self._ask(request, _streamed, _events)):
                    if len(heard.text) - len(piece) >= len(said):
                        said += piece
                        yield piece
                    elif not heard.text.startswith(said[: len(heard.text)]):
                        raise EndpointError(f"{self.url}: the answer broke off, and goes on otherwise here")
                    elif more := heard.text[len(said) :]:
                        said += more
                        yield more
                return
            except BrokeOff as error:
                if moves >= len(self._servers) - 1:
                    raise EndpointError(f"{self.url}: the answer broke off ({error})") from None
            moves += 1
            self._servers.leave(self._servers.current)
            if heard.ids and len(heard.text) >= len(said):
                request["extra_body"] = {**request["extra_body"], "answer_token_ids": heard.ids}

    def close(self) -> None:
        """Close the connections."""
        self._servers.close()

    def request(self, messages: Messages, sampling: Sampling) -> dict[str, Any]:
        """A request's body, before it is `adapted` to what the server takes."""
        chosen = {name: value for name, value in sampling.options().items() if value is not None}
        if sampling.top_p == 1:
            del chosen["top_p"]
        return {"model": self.model, "messages": messages, **chosen}

    def _ask(self, request: dict[str, Any], send: Callable[..., Any], read: Callable[[Any], Any]) -> Any:
        """Send a request, with retries; `read` gives its result, or a Trouble if that is not a chat completion."""
        import openai

        attempt, moves, most = 0, 0, request.get("max_tokens")
        while True:
            sent, link = self.adapted(request), self._servers.current
            with self.slot(), self._billed(request["messages"], most) as bill:
                try:
                    reply = read(send(link.client, sent))
                except openai.APIError as error:
                    reply = trouble.of(error)
                if isinstance(reply, Trouble):
                    bill.may_cost = reply.may_cost
                    elsewhere = len(self._servers) > 1 and reply.elsewhere
                    if reply.fatal and not elsewhere and not reply.retries(self.retries, self.timeout):
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
            if elsewhere:
                self._servers.leave(link)
                moves += 1
                if moves % len(self._servers):
                    continue  # at once, until all have been asked
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
        if "extra_body" in sent and told.blames("return_token_ids"):
            self.lacks.add("extra_body")
            return True
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
            advice = f"; check the account that {self._servers.current.server.key_name} belongs to"
        elif status in (401, 403):
            advice = f"; check {self._servers.current.server.key_name}"
        elif status == 404:
            advice = f"; is {self.model} the right --model, and {self.url} the right --base-url?"
        elif status == 429:
            advice = "; send fewer at a time (-j), or try later"
        elif status >= 500:
            advice = "; see the server's log"
        return EndpointError(f"{self.url}: HTTP {status}{tries}: {told.said}{advice}", status, told.fatal)

    def _models(self) -> list[dict[str, Any]] | Trouble:
        """What the server lists of its models, or why it lists none. Raises EndpointError if it cannot be reached."""
        import openai

        for attempt in itertools.count():
            link = self._servers.current
            try:
                raw = link.client.models.with_raw_response.list(timeout=LISTING)
                return [{**model, "id": str(model["id"])} for model in json.loads(raw.text)["data"]]
            except openai.APIError as error:
                told = trouble.of(error)
            except (ValueError, KeyError, TypeError):
                return trouble.in_reply(raw.text)
            if told.elsewhere:
                self._servers.leave(link)
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


class BrokeOff(Exception):
    """A streamed answer that did not end."""


class Heard:
    """What came of a streamed answer: its text and, if the server gives them, its token ids."""

    def __init__(self) -> None:
        self.text = ""
        self.ids: list[int] = []

    def through(self, chunks: Any) -> Generator[str]:
        """The pieces of its text. Raises BrokeOff."""
        import httpx2
        import openai

        finished = False
        try:
            for chunk in chunks:
                for choice in (chunk.choices or [])[:1]:
                    finished = finished or choice.finish_reason is not None
                    self.ids += getattr(choice, "token_ids", None) or []
                    if choice.delta and choice.delta.content:
                        piece = _text(choice.delta.content)
                        self.text += piece
                        yield piece
        except (openai.APIError, httpx2.HTTPError, ValueError) as error:
            raise BrokeOff(one_line(error)) from None
        finally:
            chunks.close()
        if not finished:
            raise BrokeOff("the server closed the connection")


def _streamed(client: openai.OpenAI, sent: dict[str, Any]) -> Any:
    return client.chat.completions.create(**sent)


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
