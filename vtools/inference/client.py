"""What all tools that ask a model share: the client, the sampling parameters, the answer."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

Messages = list[dict[str, Any]]
TOKENS = {"in": "prompt_tokens", "out": "completion_tokens"}  # our and OpenAI's names for an answer's usage


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen, and where it ends.

    `max_tokens` None means as many as fit. Temperature 0 is greedy; above it, the same seed draws the same numbers.
    """

    max_tokens: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """The sampling as parameters of a request."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "stop" or value}


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer: text, OpenAI's `finish_reason`, tokens as `{"in", "out"}`, and the server's name for its model."""

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
    """A server (`endpoint.Endpoint`) or a model in this process (`engine.Engine`)."""

    def complete(self, messages: Messages, sampling: Sampling) -> Answer: ...

    def stream(self, messages: Messages, sampling: Sampling) -> Stream: ...

    def close(self) -> None: ...


def usage(answers: list[Answer]) -> dict[str, dict[str, int]]:
    """The tokens of several answers as a record's `usage`; empty if none reported its own."""
    known = [answer.usage for answer in answers if answer.usage]
    return {"usage": {name: sum(tokens[name] for tokens in known) for name in TOKENS}} if known else {}
