"""Ask a judge for one verdict: in which way, and how often, if its reply cannot be read."""

import contextlib
import dataclasses
import math
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from vtools.inference.client import Answer, Client, Messages, Sampling
from vtools.inference.endpoint import EndpointError
from vtools.judge.prompt import JSON, LINES, LOGPROBS, Prompt
from vtools.judge.rubric import Mode, Outcome
from vtools.judge.verdicts import Choice, Scale, json_object
from vtools.process import Failure, TryAgain
from vtools.records.jsonl import Record

LONGER = 4  # times the tokens, where a reply was cut off
LEAST_MASS = 0.5  # of the probability on tokens that are a value: below it, the model meant to say something else
NOTHING = "none"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said: the outcome, None if it cannot be read; its replies, all paid for; fields for the record."""

    outcome: Outcome | None
    replies: list[Answer]
    fields: Record


class Asking:
    """One judge and the ways in which it takes questions. Thread-safe."""

    def __init__(self, client: Client, sampling: Sampling) -> None:
        self._client, self._sampling = client, sampling
        self._trying = threading.Lock()

    def verdict(self, prompt: Prompt, mode: Mode) -> Verdict:
        """Ask for a verdict: a reply that was cut off once more with four times the tokens, an unreadable one once more
        for the verdict alone. Raises EndpointError, or Failure of the model in this process.
        """
        if self._sampling.logprobs is not None:
            return self._expected(prompt, mode)
        replies: list[Answer] = []
        again: list[str] = []
        way = self._whole(prompt, self._sampling, replies)
        if replies[-1].finish == "length" and self._sampling.max_tokens:
            again.append("longer")
            longer = dataclasses.replace(self._sampling, max_tokens=LONGER * self._sampling.max_tokens)
            with _kept():
                way = self._whole(prompt, longer, replies)
        whole = replies[-1]
        values = _read(prompt, way, whole)
        fields: Record = {"form": way, "parse": NOTHING, "text": whole.text}
        if values is None:
            again.append("verdict")
            with _kept():
                replies.append(self._complete(prompt, way, self._sampling, prompt.again(way, whole.text)))
                fields["asked_again"] = replies[-1].text
                values = _read(prompt, way, replies[-1])
        if again:
            fields["again"] = again
        if values is None:
            return Verdict(None, replies, fields)
        return Verdict(mode.outcome(prompt.form, values), replies, {**fields, "parse": way})

    def _whole(self, prompt: Prompt, sampling: Sampling, replies: list[Answer]) -> str:
        """Ask for a whole reply, which is appended, and return the way in which it was asked for."""
        if self._client.takes_schema is None:
            with self._trying:  # the others wait for the first trial, but not for each other
                if self._client.takes_schema is None and self._by_schema(prompt, sampling, replies):
                    return JSON
        if self._client.takes_schema and self._by_schema(prompt, sampling, replies):
            return JSON
        replies.append(self._complete(prompt, LINES, sampling))
        return LINES

    def _by_schema(self, prompt: Prompt, sampling: Sampling, replies: list[Answer]) -> bool:
        """Ask by schema, and note whether the endpoint takes one: it may refuse it, ignore it or say nothing."""
        try:
            reply = self._complete(prompt, JSON, sampling)
        except EndpointError as error:
            if self._client.takes_schema or error.status not in (400, 422):
                raise
            self._client.takes_schema = False
            return False
        replies.append(reply)
        if reply.finish == "length":
            return True
        taken = bool(reply.text.strip()) if self._client.takes_schema else json_object(reply.text) is not None
        self._client.takes_schema = taken
        return taken

    def _complete(self, prompt: Prompt, way: str, sampling: Sampling, messages: Messages | None = None) -> Answer:
        if way == JSON:
            sampling = dataclasses.replace(sampling, schema=prompt.form.schema)
        return self._client.complete(messages or prompt.messages(way), sampling)

    def _expected(self, prompt: Prompt, mode: Mode) -> Verdict:
        """The outcome that is to be expected by the probabilities of the first token that is not blank."""
        reply = self._complete(prompt, LOGPROBS, self._sampling)
        if reply.logprobs is None:
            raise EndpointError("the judge's server gives no log-probabilities; leave out --logprobs", fatal=True)
        found = probabilities(prompt.form.value, reply.logprobs)
        mass = sum(found.values())
        fields: Record = {"form": LOGPROBS, "parse": NOTHING, "text": reply.text, "mass": round(mass, 6)}
        if mass < LEAST_MASS:
            return Verdict(None, [reply], fields)
        shares = {value: probability / mass for value, probability in found.items()}
        return Verdict(mode.expected(shares), [reply], {**fields, "parse": LOGPROBS})


def probabilities(value: Scale | Choice, tokens: list[tuple[str, list[tuple[str, float]]]]) -> dict[Any, float]:
    """The probability of each value, read from the likeliest tokens at the first place whose token is not blank.

    The quote that ends a value may be part of its token. Blank tokens before it count with their probability, so that
    the sum is a lower bound.
    """
    found: dict[Any, float] = defaultdict(float)
    reached = 1.0
    for token, likeliest in tokens:
        for text, logprob in likeliest:
            read = value.read(text.strip().removesuffix('"'))
            if read is not None:
                found[read] += reached * math.exp(logprob)
        if token.strip():
            break
        reached *= math.exp(max((logprob for text, logprob in likeliest if text == token), default=-math.inf))
    return found


def _read(prompt: Prompt, way: str, reply: Answer) -> list[Any] | None:
    """The values of a reply that was not cut off."""
    if reply.finish == "length":
        return None
    return prompt.form.read_json(reply.text) if way == JSON else prompt.form.read(reply.text)


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Keep what was paid for if another call fails, unless all others would fail too."""
    try:
        yield
    except TryAgain:
        raise
    except Failure as failure:
        if isinstance(failure, EndpointError) and failure.fatal:
            raise
