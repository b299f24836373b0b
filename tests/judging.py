"""Judges on loopback that answer in the form in which they are asked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from loopback import Chat, Reply, Request, Server, Status

LINE = re.compile(r"^([0-9a-f]{8} .+): (?:NUMBER|CHOICE)$", re.MULTILINE)


def grades(*values: object) -> list[object]:
    """What a judge is to say, in whatever form it is asked."""
    return list(values)


def in_form(messages: list[dict], values: list[object]) -> str:
    """An explanation, and the lines that the last message asks for."""
    labels = LINE.findall(messages[-1]["content"])
    assert len(labels) == len(values), (labels, values)
    lines = [f"{label}: {value}" for label, value in zip(labels, values, strict=True)]
    return "\n".join(["Both answer the question, one of them better.", "", *lines])


def by_schema(body: dict, values: list[object]) -> str:
    """The same by the schema of the request."""
    names = list(body["response_format"]["json_schema"]["schema"]["properties"])
    return json.dumps(dict(zip(names, ["Both answer.", *values], strict=True)))


class Judge(Chat):
    """A server that knows no schemas. `answer(messages, body)` gives grades, which are put in form, or a text."""

    def __init__(self, answer: Callable[[list[dict], dict], Any], **options: Any) -> None:
        def reply(messages: list[dict], body: dict) -> Any:
            if "response_format" in body:
                raise Status(400, {"error": {"message": "response_format is not supported"}})
            said = answer(messages, body)
            return in_form(messages, said) if isinstance(said, list) else said

        super().__init__(reply, **options)

    @property
    def bodies(self) -> list[dict]:
        return [body for body in super().bodies if "response_format" not in body]


class Probable(Server):
    """A server that gives log-probabilities: for each token of an answer its text and the likeliest with theirs."""

    def __init__(self, *tokens: tuple[str, dict[str, float]]) -> None:
        def one(text: str, probability: float) -> dict:
            return {"token": text, "logprob": math.log(probability), "bytes": None}

        content = [
            {**one(text, likeliest.get(text, 1e-9)), "top_logprobs": [one(*each) for each in likeliest.items()]}
            for text, likeliest in tokens
        ]

        def reply(request: Request) -> Reply:
            message = {"role": "assistant", "content": "".join(text for text, _ in tokens)}
            choice = {"index": 0, "message": message, "finish_reason": "length", "logprobs": {"content": content}}
            return Reply.json({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})

        super().__init__(reply)
        self.url += "/v1"
