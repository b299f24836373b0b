"""What every tool that asks a model shares: who answers, how tokens are chosen, and what comes back."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

Messages = list[dict[str, Any]]
TOKENS = {"in": "prompt_tokens", "out": "completion_tokens"}  # ours and OpenAI's names of an answer's usage


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen, and where it ends.

    `max_tokens` None means as many as fit. Temperature 0 takes the likeliest token each time; above it, the same seed
    draws the same numbers.
    """

    max_tokens: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """What was chosen, as parameters of a request."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "stop" or value}


@dataclasses.dataclass(frozen=True, slots=True)
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
    """What answers: a server (`endpoint.Endpoint`) or a model in this process (`engine.Engine`)."""

    def complete(self, messages: Messages, sampling: Sampling) -> Answer: ...

    def stream(self, messages: Messages, sampling: Sampling) -> Stream: ...

    def close(self) -> None: ...


def usage(answers: list[Answer]) -> dict[str, dict[str, int]]:
    """The tokens of several answers as a record's `usage`; nothing if no answer came with its own."""
    known = [answer.usage for answer in answers if answer.usage]
    return {"usage": {name: sum(tokens[name] for tokens in known) for name in TOKENS}} if known else {}
