"""The form in which a judge gives its verdict, and reading it: what is not exactly in that form is no verdict."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

NUMBER = re.compile(r"-?[0-9]{1,6}(?:\.[0-9]{1,4})?")
MARKUP = "*_`"  # of Markdown, which may stand around a label or a value
DECORATION = rf"[\s{MARKUP}]"
EXPLANATION = "explanation"
# How models mark what they say to themselves: <think>, <seed:think>, <|begin_of_thought|>, ◁think▷, [THINK].
THOUGHT = re.compile(
    r"(?:<\|?|◁)(?P<close>/|end_of_)?(?:begin_of_)?(?:\w+:)?"
    r"(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)(?:\s[^<>\n]*)?(?:\|?>|▷)|\[(?P<end>/)?think\]",
    re.IGNORECASE,
)
CHANNEL, FINAL = "<|channel|>", "<|channel|>final<|message|>"  # of models that name the part in which they speak


@dataclass(frozen=True, slots=True)
class Scale:
    """A number from `lowest` to `highest`."""

    lowest: float
    highest: float

    placeholder = "NUMBER"

    @property
    def meaning(self) -> str:
        """What stands for the placeholder."""
        return f"a number {self.listed(str)}"

    def listed(self, write: Callable[[str], str]) -> str:
        """Its values as they are to be written, with what they mean."""
        return f"from {write(f'{self.lowest:g}')} (worst) to {write(f'{self.highest:g}')} (best)"

    @property
    def schema(self) -> dict[str, Any]:
        """For JSON; without the limits, which not every server takes."""
        return {"type": "number"}

    def read(self, value: Any) -> float | None:
        """The number, from a text or from JSON; None if it is no number of the scale."""
        if isinstance(value, str) and NUMBER.fullmatch(value):
            value = float(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number and self.lowest <= value <= self.highest else None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several names; each has what it means, as a condition."""

    names: dict[str, str]

    placeholder = "CHOICE"

    @property
    def meaning(self) -> str:
        """What stands for the placeholder."""
        return self.listed(str)

    def listed(self, write: Callable[[str], str]) -> str:
        """Its values as they are to be written, with what they mean."""
        return ", ".join(f"{write(name)} if {means}" for name, means in self.names.items())

    @property
    def schema(self) -> dict[str, Any]:
        """For JSON."""
        return {"type": "string", "enum": list(self.names)}

    def read(self, value: Any) -> str | None:
        """The name; None if it is none of them, in its own case: an article is no verdict for A."""
        return value if isinstance(value, str) and value in self.names else None


@dataclass(frozen=True, slots=True)
class Form:
    """The last lines of a reply, one per label, each with the call's mark: `3f9a01bc Assistant 1: 8`.

    Nobody who writes an answer can know the mark, so that a verdict which stands in an answer is never the judge's.
    """

    mark: str
    labels: tuple[str, ...]
    value: Scale | Choice

    @property
    def lines(self) -> str:
        """The lines to write, with placeholders."""
        return "\n".join(f"{self.mark} {label}: {self.value.placeholder}" for label in self.labels)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of a reply: the explanation first, then one value per label."""
        values = {label: self.value.schema for label in self.labels}
        properties = {EXPLANATION: {"type": "string"}, **values}
        return {
            "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
        }  # fmt: skip

    def read(self, reply: str) -> list[Any] | None:
        """The values on the reply's last lines, or None unless every label is there, in order and only once."""
        lines = [_bare(line) for line in (after_thoughts(reply) or "").splitlines() if line.strip()]
        while lines and not lines[-1]:  # a closing fence
            lines.pop()
        if not len(re.findall(self._beginning(self.labels), "\n".join(lines))) == len(self.labels) <= len(lines):
            return None
        found = []
        for label, line in zip(self.labels, lines[-len(self.labels) :], strict=True):
            begins = re.match(self._beginning([label]), line)
            found.append(self.value.read(_bare(line[begins.end() :])) if begins else None)
        return None if None in found else found

    def read_json(self, reply: str) -> list[Any] | None:
        """The values of a reply by `schema`, or None unless it is exactly that."""
        pairs = json_object(reply)
        if pairs is None or [name for name, _ in pairs] != [EXPLANATION, *self.labels]:
            return None
        found = [self.value.read(value) for _, value in pairs[1:]]
        return None if None in found else found

    def _beginning(self, labels: Iterable[str]) -> str:
        return rf"{self.mark}{DECORATION}+(?:{'|'.join(map(re.escape, labels))}){DECORATION}*[:\uff1a]"


def _bare(text: str) -> str:
    """A text without the blanks and the markup around it."""
    return text.strip(MARKUP + " \t")


def json_object(reply: str) -> list[tuple[str, Any]] | None:
    """The names and values of a reply that is one JSON object, in its own order and with what is there twice."""
    text = (after_thoughts(reply) or "").strip()
    if fenced := re.fullmatch(r"```(?:json)?\n(.*)\n```", text, re.DOTALL):
        text = fenced[1].strip()
    if not text.startswith("{"):
        return None
    try:
        return json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return None


def after_thoughts(reply: str) -> str | None:
    """What a model says after it has thought aloud; None if it never ends to think.

    A thought whose beginning stands in the prompt has only an end.
    """
    if CHANNEL in reply:
        reply = reply.rpartition(FINAL)[2] if FINAL in reply else "<think>"
    depth = end = 0
    for tag in THOUGHT.finditer(reply):
        depth = max(depth - 1, 0) if tag["close"] or tag["end"] else depth + 1
        end = tag.end()
    return None if depth else reply[end:]
