"""A client for any OpenAI-compatible server: retries, timeouts, and parameters that servers refuse."""

import itertools
import socket
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

from vtools.inference import address, retry
from vtools.inference.address import Server, one_line
from vtools.inference.client import TOKENS, Answer, Messages, Sampling
from vtools.process import Failure, UsageFailure

START_WAIT = 30.0  # seconds to wait until a server on this machine listens


class EndpointError(Failure):
    """A server gave no answer. `fatal`: every other question would fail the same way."""

    def __init__(self, message: str, status: int | None = None, fatal: bool = False) -> None:
        super().__init__(message)
        self.status, self.fatal = status, fatal


class Endpoint:
    """One server and one of its models. Thread-safe."""

    takes_schema = True

    def __init__(
        self, url: str, model: str | None = None, *, timeout: float = 600.0, retries: int = retry.RETRIES,
        start_wait: float = START_WAIT,
    ) -> None:  # fmt: skip
        """`timeout` limits a silence of the server, in seconds. Without `model`, the server must have exactly one."""
        self._server = Server(url)
        self.url, key = self._server.url, address.key()
        if not key and self._server.is_openai:
            raise Failure(f"{self.url}: OPENAI_API_KEY is not set; set it, or name another server with --base-url")
        import httpx2
        import openai

        self.retries = retries
        self._lacks: set[str] = set()  # parameters that this server refused
        self._client = openai.OpenAI(
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

    def complete(self, messages: Messages, sampling: Sampling) -> Answer:
        """Ask, and wait for the whole answer. Raises EndpointError."""
        started = time.monotonic()
        request = self._request(messages, sampling)
        reply = self._ask(request, lambda reply: reply.choices[0].message)
        usage = reply.usage and {ours: getattr(reply.usage, theirs) or 0 for ours, theirs in TOKENS.items()}
        choice = reply.choices[0]
        elapsed = round((time.monotonic() - started) * 1000)
        text, logprobs = choice.message.content or "", _logprobs(choice)
        return Answer(text, choice.finish_reason, usage, reply.model, elapsed, logprobs)

    def stream(self, messages: Messages, sampling: Sampling) -> Generator[str]:
        """Ask, and yield the answer as it comes. Retries only before the first piece. Raises EndpointError."""
        import httpx2
        import openai

        request = self._request(messages, sampling)
        chunks = self._ask({**request, "stream": True}, lambda chunks: chunks.response)
        finished = False
        try:
            for chunk in chunks:
                for choice in (chunk.choices or [])[:1]:
                    finished = finished or choice.finish_reason is not None
                    if choice.delta and choice.delta.content:
                        yield choice.delta.content
        except (openai.APIError, httpx2.HTTPError, ValueError) as error:
            raise EndpointError(f"{self.url}: the answer broke off ({one_line(error)})") from None
        finally:
            chunks.close()
        if not finished:
            raise EndpointError(f"{self.url}: the answer broke off (the server closed the connection)")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _request(self, messages: Messages, sampling: Sampling) -> dict[str, Any]:
        chosen = {name: value for name, value in sampling.options().items() if value is not None}
        if sampling.top_p == 1:
            del chosen["top_p"]
        return {"model": self.model, "messages": messages, **chosen}

    def _ask(self, request: dict[str, Any], probe: Callable[[Any], Any]) -> Any:
        """Send a request, with retries; `probe` fails on a reply that is not a chat completion."""
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
                if "max_tokens" in request and _asked_too_much(error):
                    # Without a limit of ours the answer ends where the context does, which is below it.
                    request = {name: value for name, value in request.items() if name != "max_tokens"}
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
        """Note what the server refuses: newer OpenAI models rename `max_tokens`, some servers have no `seed`."""
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

        allowed, asked = self.retries, None
        if isinstance(error, openai.APITimeoutError):
            allowed = min(1, self.retries)
        elif isinstance(error, openai.APIStatusError):
            asked = retry.after(error.response.headers)
            if not retry.is_transient(error.status_code) or error.code == "insufficient_quota":
                allowed = 0
        return retry.wait(attempt, allowed, asked)

    def _error(self, error: Exception, attempts: int) -> EndpointError:
        import openai

        tries = f" after {attempts} tries" if attempts > 1 else ""
        if isinstance(error, openai.APITimeoutError):
            return EndpointError(f"{self.url}: no answer in time{tries}; raise --timeout")
        if isinstance(error, openai.APIConnectionError):
            cause = one_line(error.__cause__ or error)
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
            advice = "; send fewer at a time (-j), or try later"
        elif status >= 500:
            advice = "; see the server's log"
        fatal = status in (401, 403, 404) or error.code == "insufficient_quota"
        return EndpointError(f"{self.url}: HTTP {status}{tries}: {_said(error)}{advice}", status, fatal)

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

    def _only_model(self) -> str:
        import openai

        try:
            names = [model.id for model in self._client.models.list().data]
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._error(error, 1) from None
        except (openai.APIError, ValueError, AttributeError, TypeError) as error:
            raise UsageFailure(
                f"{self.url}: does not list its models ({one_line(error)}); name one with --model"
            ) from None
        if len(names) != 1:
            listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise UsageFailure(f"{self.url} has {len(names)} models; choose one with --model: {listed}")
        return names[0]


def _logprobs(choice: Any) -> list[tuple[str, list[tuple[str, float]]]] | None:
    tokens = choice.logprobs and choice.logprobs.content
    return tokens and [
        (token.token, [(each.token, each.logprob) for each in token.top_logprobs or ()]) for token in tokens
    ]


def _asked_too_much(error: Exception) -> bool:
    """Whether a server refused a request only because the context leaves fewer tokens than it asked for."""
    code, param = getattr(error, "code", None), getattr(error, "param", None)
    return code == "context_length_exceeded" and param in ("max_tokens", "max_completion_tokens")


def _said(error: Any) -> str:
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return one_line(body or error.message)
