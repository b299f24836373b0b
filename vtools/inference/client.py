"""What all tools that ask a model share: the client, the sampling parameters, the answer."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, Self

from vtools.inference.budget import Budget

Messages = list[dict[str, Any]]
Slot = Callable[[], AbstractContextManager[None]]
TOKENS = {"in": "prompt_tokens", "out": "completion_tokens"}  # our and OpenAI's names for an answer's usage


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen, and where it ends.

    `max_tokens` None means as many as fit. Temperature 0 is greedy; above it, the same seed draws the same numbers.
    `logprobs` asks for the log-probability of each token, and for those of so many of the likeliest (0 to 20).
    `schema` asks for JSON of this schema, of a client that `takes_schema`.
    """

    max_tokens: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    schema: dict[str, Any] | None = None

    def options(self) -> dict[str, Any]:
        """The sampling as parameters of a request."""
        given = dataclasses.asdict(self)
        top, schema = given.pop("logprobs"), given.pop("schema")
        if not self.stop:
            del given["stop"]
        if schema is not None:
            named = {"name": "answer", "strict": True, "schema": schema}
            given["response_format"] = {"type": "json_schema", "json_schema": named}
        return given if top is None else given | {"logprobs": True, "top_logprobs": top}


class Token(NamedTuple):
    """A token of an answer; if asked for, with natural log-probabilities: its own, and the likeliest tokens'."""

    id: int
    logprob: float | None = None
    top: dict[int, float] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer: text, OpenAI's `finish_reason`, tokens as `{"in", "out"}`, and the server's name for its model.

    `logprobs`, if asked for, has each token's text, and the texts of the likeliest with natural log-probabilities.
    `batch` is the id of the batch that it came with, if it was asked for by one: then `ms` is what that took.
    """

    text: str
    finish: str | None
    usage: dict[str, int] | None
    model: str | None
    ms: int
    logprobs: list[tuple[str, list[tuple[str, float]]]] | None = None
    batch: str | None = None


class Tokens(Protocol):
    """The tokens of one answer, as they come. `finish` is "stop" or "length" with the last, None before.

    Iterating raises what ended it too early; closing it, from any thread, ends the generation and the iteration.
    """

    finish: str | None
    usage: dict[str, int]

    def __iter__(self) -> Self: ...

    def __next__(self) -> list[Token]: ...

    def close(self) -> None: ...


class Stream(Protocol):
    """Text in pieces; closing it ends the answer."""

    def __iter__(self) -> Iterator[str]: ...

    def close(self) -> None: ...


class Client(Protocol):
    """A server (`endpoint.Endpoint`) or a model in this process (`engine.Engine`)."""

    takes_schema: bool | None  # None until it is tried; a server that takes none refuses or ignores it
    budget: Budget | None  # what its answers cost, if that is known
    slot: Slot  # to be held while it is asked, so that it is not asked too much at a time

    def identity(self) -> str: ...

    def complete(self, messages: Messages, sampling: Sampling) -> Answer: ...

    def stream(self, messages: Messages, sampling: Sampling) -> Stream: ...

    def close(self) -> None: ...


def usage(answers: list[Answer]) -> dict[str, dict[str, int]]:
    """The tokens of several answers as a record's `usage`; empty if none reported its own."""
    known = [answer.usage for answer in answers if answer.usage]
    return {"usage": {name: sum(tokens[name] for tokens in known) for name in TOKENS}} if known else {}


def paid(answers: list[Answer]) -> dict[str, Any]:
    """What several answers took, as fields of a record: `usage` if one is known, `batch` if one was asked so, `ms`."""
    batches = [answer.batch for answer in answers if answer.batch]
    last = {"batch": batches[-1]} if batches else {}
    return {**usage(answers), **last, "ms": sum(answer.ms for answer in answers)}
