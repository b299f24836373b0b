"""How many tokens a text is, exactly as the template's encoders say, from a cache of words where that is provable.

A tokenizer makes the same tokens of two texts end to end as of each by itself, if nothing in it ever joins what stands
on the two sides of the cut. Where that can be shown, texts are cut into short units, and each unit is encoded once.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vtools.models.text_encoders import INSIDE
from vtools.records.jsonl import Reject

if TYPE_CHECKING:
    import tokenizers

    from vtools.models.template import Piece, Run, Template
    from vtools.models.tokenizer import Tokenizer

CACHED = 1 << 18  # units remembered; then the cache starts again
_LONGEST = 40  # characters of a unit that is remembered
_CHUNK = 1 << 16  # characters cut into units at a time: the units of a hundred megabytes would fill the memory
_UNKNOWN = -(1 << 62)  # the count of a unit that makes a sum worthless

# Pre-tokenizers that match one pattern after the other from where the last match ended. In both, no alternative goes
# on from a non-space into white space, save that the second's punctuation takes the line ends behind it; so what
# follows a cut in front of white space is matched as if the text began there, and what precedes it as if it ended.
_GPT2 = r"\s*\S+(?:[^\S \t\n\r]\s*\S*)*|\s+"
_LLAMA3 = r"\s*\S+(?:(?:(?<![A-Za-z0-9])[\n\r]|[^\S \t\n\r])\s*\S*)*|\s+"
_SPLITS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": _LLAMA3
    for digits in (r"\p{N}{1,3}", r"\p{N}")  # Llama 3's; Qwen 2's and 3's
}


class Counts:
    """Counts of texts with the three encoders of a tokenizer (see `models.text_encoders`)."""

    def __init__(
        self, tokenizer: Tokenizer, encoders: tuple[tokenizers.Tokenizer, ...], forbidden: frozenset[int] = frozenset()
    ) -> None:
        """`forbidden` are ids that the caller does not take for text: where one comes out, there is no count."""
        setup = json.loads(tokenizer.backend.to_str())
        self.encoders, self.forbidden = encoders, forbidden
        plain = [token for token in tokenizer.added.values() if not token.special]
        # An added token that is not special is found in any text, wherever it stands.
        self._tokens = re.compile("|".join(re.escape(token.content) for token in plain)) if plain else None
        self._unit, spaces = unit(setup)
        if setup["normalizer"] and any(token.normalized or " " in token.content for token in plain):
            self._unit = None
        # Only NFC makes a text longer, and no pre-tokenizer puts in more than one space at the start.
        self.bounded = self._unit is not None and "NFC" not in _types(setup["normalizer"])
        known = {id(encoder): _Known(functools.partial(_encoded, encoder), forbidden) for encoder in encoders}
        if spaces:  # the model itself answers twice as fast
            known[id(encoders[INSIDE])] = _Known(functools.partial(_merged, encoders[INSIDE].model), forbidden)
        self._known = [known[id(encoder)] for encoder in encoders]

    def count(self, encoder: int, text: str) -> int | None:
        """The tokens of a text for encoder FIRST, AFTER_TOKEN or INSIDE; None if a forbidden one is among them."""
        if not text:
            return 0
        if self._unit is None or (self._tokens and self._tokens.search(text)):
            ids = self.encoders[encoder].encode_batch_fast([text], add_special_tokens=False)[0].ids
            return len(ids) if self.forbidden.isdisjoint(ids) else None
        inside = self._known[INSIDE]
        total = 0
        for units in self._units(text):
            if encoder != INSIDE:  # only what stands first can get a space in front
                total += self._known[encoder][units.pop(0)]
                encoder = INSIDE
            total += sum(map(inside.__getitem__, units))
        return total if total >= 0 else None

    def _units(self, text: str) -> Iterator[list[str]]:
        """The units of a text, in lists of a bounded size."""
        assert self._unit is not None
        start, size = 0, _CHUNK
        while start + size < len(text):
            units = self._unit.findall(text, start, start + size)
            if len(units) == 1:  # none ends here
                size *= 2
                continue
            start += size - len(units.pop())  # which may go on
            size = _CHUNK
            yield units
        yield self._unit.findall(text, start)


def _encoded(encoder: tokenizers.Tokenizer, text: str) -> list[int]:
    return encoder.encode(text, None, False, False).ids


def _merged(model: tokenizers.models.Model, text: str) -> list[int]:
    return [token.id for token in model.tokenize(text.replace(" ", "▁"))]


class _Known(dict[str, int]):
    """Units and how many tokens each is; one that is missing is encoded."""

    def __init__(self, encode: Callable[[str], list[int]], forbidden: frozenset[int]) -> None:
        super().__init__()
        self.encode, self.forbidden = encode, forbidden

    def __missing__(self, text: str) -> int:
        ids = self.encode(text)
        count = len(ids) if self.forbidden.isdisjoint(ids) else _UNKNOWN
        if len(text) <= _LONGEST:
            if len(self) >= CACHED:
                self.clear()
            self[text] = count
        return count


def unit(setup: dict[str, Any]) -> tuple[re.Pattern[str] | None, bool]:
    """What finds the units of a text one after the other, for a tokenizer's JSON; None if no cut is surely harmless.

    The second result says whether the model gets the text as it is, but for its spaces.
    """
    if setup["model"]["type"] != "BPE" or setup["model"].get("dropout"):
        return None, False
    normalizer, steps = _steps(setup["normalizer"]), _steps(setup["pre_tokenizer"])
    kinds = _types(setup["pre_tokenizer"])
    if _is_spaces(steps[0]) if steps else any(map(_is_spaces, normalizer)):
        if kinds[1:] or any(step["type"] != "Prepend" and not _is_spaces(step) for step in normalizer):
            return None, False
        return _between_merges(setup["model"]), True
    if _types(setup["normalizer"]) not in ([], ["NFC"]):  # NFC joins nothing across white space
        return None, False
    if kinds[-1:] != ["ByteLevel"] or (kinds[1:] and steps[-1]["add_prefix_space"]):  # one in front of each step's part
        return None, False
    if kinds in (["ByteLevel"], ["Digits", "ByteLevel"]) and steps[-1]["use_regex"]:
        return re.compile(_GPT2), False
    if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        pattern = _SPLITS.get(steps[0]["pattern"].get("Regex", ""))
        if pattern and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
            return re.compile(pattern), False
    return None, False


def _is_spaces(step: dict[str, Any]) -> bool:
    """Whether all that a step does is to write ▁ for a space, and one in front."""
    if step["type"] == "Metaspace":
        return step["replacement"] == "▁" and not step.get("split", True)
    return (step["type"], step.get("pattern"), step.get("content")) == ("Replace", {"String": " "}, "▁")


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part.get("normalizers") or part.get("pretokenizers") or [part]


def _types(part: dict[str, Any] | None) -> list[str]:
    return [step["type"] for step in _steps(part)]


def _between_merges(model: dict[str, Any]) -> re.Pattern[str] | None:
    """Units for a SentencePiece BPE: two characters that no merge ever brings together may be cut apart.

    A merge across a cut would join a piece that ends with the one character and a piece that starts with the other.
    The characters fall into groups that no merge connects (in LLaMA's vocabulary: the letters of each script, the
    punctuation; digits and line ends stand alone); a unit is a run of one group with the spaces before it.
    """
    bytes_ = {f"<0x{number:02X}>" for number in range(256)}
    if not model["byte_fallback"] or not bytes_ <= model["vocab"].keys() or model["ignore_merges"]:
        return None  # a run of unknown characters may become one token, or a whole text be looked up
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return None
    group: dict[str, str] = {}

    def find(character: str) -> str:
        while (parent := group.setdefault(character, character)) != character:
            group[character] = character = group[parent]
        return character

    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    for left, right in {(left[-1], right[0]) for left, right in merges}:
        if right == "▁" and left != "▁":
            return None
        if left != "▁":
            group[find(left)] = find(right)
    if any(part in bytes_ for merge in merges for part in merge):
        return None
    groups: dict[str, list[str]] = defaultdict(list)
    for character in sorted(group):
        groups[find(character)].append(character)
    classes = [f"[{''.join(map(re.escape, members))}]+" for members in sorted(groups.values(), key=len, reverse=True)]
    return re.compile(f"[ ▁]*(?:{'|'.join([*classes, '[^ ▁]'])})|[ ▁]+")


class Rendering:
    """Counts conversations as a template renders them, to the token."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.known: dict[tuple[int, bool, str], int] = {}  # to be cleared between two conversations
        self._counts = Counts(template.tokenizer, template.encoders, frozenset(template.forbidden[False]))
        self._joints: dict[tuple[bool, int], list[int] | None] = {}

    def count(self, messages: list[dict[str, Any]], trial: bool = False) -> int:
        """The tokens of a conversation; those of a `trial` are not remembered. Raises Reject."""
        return sum(self.tokens(run, trial) for run in self.template.runs(messages))

    def tokens(self, run: Run, trial: bool = False) -> int:
        """The tokens of one stretch of a rendering."""
        if run.token is not None:
            return 1
        key = (run.encoder, run.trained, run.text)
        tokens = self.known.get(key)
        if tokens is None:
            tokens = self._counts.count(run.encoder, run.text)
            if tokens is None:
                tokens = len(self.template.encode(run))
            if not trial:
                self.known[key] = tokens
        return tokens

    def fits_surely(self, runs: list[Run], limit: int) -> bool:
        """Whether the bytes alone say that it fits: a token is at least one, or the space put before a text."""
        return self._counts.bounded and sum(len(run.text.encode()) + 1 for run in runs) <= limit

    def joints(self, system: bool, pairs: int) -> list[int] | None:
        """Where in the skeleton of so many questions and answers each pair ends, if they add up; None if not.

        They add up if each pair after the first has the same pieces, which begin a new run: then it counts the same
        tokens in any such conversation in which it is not the first.
        """
        key = system, pairs
        if key not in self._joints:
            self._joints[key] = self._find_joints(system, pairs)
        return self._joints[key]

    def _find_joints(self, system: bool, pairs: int) -> list[int] | None:
        def pieces(number: int) -> list[Piece]:
            return self.template.skeleton(("system",) * system + ("user", "assistant") * number, False)

        try:
            first, two, whole = pieces(1), pieces(2), pieces(pairs)
        except Reject:
            return None
        again = two[len(first) :]
        if two[: len(first)] != first or not again:
            return None
        after_token = first[-1].token is not None
        if after_token != (again[-1].token is not None):  # what follows would be encoded in two ways
            return None
        if not after_token and again[0].token is None and again[0].trained in (first[-1].trained, again[-1].trained):
            return None
        expected = list(first)
        for number in range(1, pairs):
            for piece in again:
                slot = piece.slot if piece.slot is None else piece.slot + 2 * number - 2
                expected.append(replace(piece, slot=slot))
        return list(range(len(first), len(expected) + 1, len(again))) if whole == expected else None
