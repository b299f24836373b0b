"""Token counts of texts, exactly those of the template's encoders, summed from cached units where that is provable.

A text's count is the sum over its units if no token can ever span the cut between two units. `unit` derives a pattern
for such units from tokenizer.json, or returns None: then whole texts are encoded. Two kinds of proof are known:
- Byte-level BPE: the pre-tokenizer splits a text before BPE runs, and no token spans two splits. Units are cut before
  white space, where a split always begins (see `_SPLITS`).
- SentencePiece BPE: only merges make tokens. Units are cut between characters that no merge joins (`_between_merges`).
An example, "The cat sat. The cat, too.", 9 tokens in both cases, with " cat" of LLaMA encoded once:
  SmolLM2  The| cat| sat.| The| cat,| too.           1 + 1 + 2 + 1 + 2 + 2
  LLaMA    The| cat| sat|.| The| cat|,| too|.        1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1
Some encoders put a space before a text; the first unit is therefore counted by the encoder of its place, all others by
INSIDE, which adds nothing.
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

    from vtools.models.pieces import Piece
    from vtools.models.template import Run, Template
    from vtools.models.tokenizer import Tokenizer

CACHED = 1 << 18  # units cached; then the cache is cleared
_LONGEST = 40  # characters; longer units are not cached
_CHUNK = 1 << 16  # characters cut into units at a time, to bound memory
_UNKNOWN = -(1 << 62)  # the count of a unit with a forbidden token: makes any sum negative

# Units of pre-tokenizers whose matches follow one another without gaps. In both, no alternative continues from a
# non-space into white space, except that the second's punctuation takes the line ends after it. So a cut before white
# space is harmless: what follows is matched as if the text began there, what precedes as if it ended there.
_GPT2 = r"\s*\S+(?:[^\S \t\n\r]\s*\S*)*|\s+"
_LLAMA3 = r"\s*\S+(?:(?:(?<![A-Za-z0-9])[\n\r]|[^\S \t\n\r])\s*\S*)*|\s+"
_SPLITS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": _LLAMA3
    for digits in (r"\p{N}{1,3}", r"\p{N}")  # Llama 3's; Qwen 2's and 3's
}


class Counts:
    """Counts of texts by the three encoders of a tokenizer (see `models.text_encoders`)."""

    def __init__(
        self, tokenizer: Tokenizer, encoders: tuple[tokenizers.Tokenizer, ...], forbidden: frozenset[int] = frozenset()
    ) -> None:
        """`forbidden` are ids that text must not produce: a text that does has no count."""
        setup = json.loads(tokenizer.backend.to_str())
        self.encoders, self.forbidden = encoders, forbidden
        plain = [token for token in tokenizer.added.values() if not token.special]
        # An added token that is not special is matched anywhere in a text.
        self._tokens = re.compile("|".join(re.escape(token.content) for token in plain)) if plain else None
        self._unit, spaces = unit(setup)
        if setup["normalizer"] and any(token.normalized or " " in token.content for token in plain):
            self._unit = None
        # Only NFC can make a text longer, and no pre-tokenizer adds more than one space at the start.
        self.bounded = self._unit is not None and "NFC" not in _types(setup["normalizer"])
        known = {id(encoder): _Known(functools.partial(_encoded, encoder), forbidden) for encoder in encoders}
        if spaces:  # calling the model directly is twice as fast
            known[id(encoders[INSIDE])] = _Known(functools.partial(_merged, encoders[INSIDE].model), forbidden)
        self._known = [known[id(encoder)] for encoder in encoders]

    def count(self, encoder: int, text: str) -> int | None:
        """The number of tokens of a text by encoder FIRST, AFTER_TOKEN or INSIDE; None if one is forbidden."""
        if not text:
            return 0
        if self._unit is None or (self._tokens and self._tokens.search(text)):
            ids = self.encoders[encoder].encode_batch_fast([text], add_special_tokens=False)[0].ids
            return len(ids) if self.forbidden.isdisjoint(ids) else None
        inside = self._known[INSIDE]
        total = 0
        for units in self._units(text):
            if encoder != INSIDE:  # only the first unit can get a space in front
                total += self._known[encoder][units.pop(0)]
                encoder = INSIDE
            total += sum(map(inside.__getitem__, units))
        return total if total >= 0 else None

    def _units(self, text: str) -> Iterator[list[str]]:
        """The units of a text, in lists of bounded size."""
        assert self._unit is not None
        start, size = 0, _CHUNK
        while start + size < len(text):
            units = self._unit.findall(text, start, start + size)
            if len(units) == 1:  # no unit ends in this window
                size *= 2
                continue
            start += size - len(units.pop())  # the last one may continue
            size = _CHUNK
            yield units
        yield self._unit.findall(text, start)


def _encoded(encoder: tokenizers.Tokenizer, text: str) -> list[int]:
    return encoder.encode(text, None, False, False).ids


def _merged(model: tokenizers.models.Model, text: str) -> list[int]:
    return [token.id for token in model.tokenize(text.replace(" ", "▁"))]


class _Known(dict[str, int]):
    """Token counts by unit; a missing unit is encoded."""

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
    """The pattern of a text's units, from a tokenizer's JSON; None if no cut is provably safe.

    The second result says whether the model gets the text unchanged, except for its spaces.
    """
    if setup["model"]["type"] != "BPE" or setup["model"].get("dropout"):
        return None, False
    normalizer, steps = _steps(setup["normalizer"]), _steps(setup["pre_tokenizer"])
    kinds = _types(setup["pre_tokenizer"])
    if _is_spaces(steps[0]) if steps else any(map(_is_spaces, normalizer)):
        if kinds[1:] or any(step["type"] != "Prepend" and not _is_spaces(step) for step in normalizer):
            return None, False
        return _between_merges(setup["model"]), True
    if _types(setup["normalizer"]) not in ([], ["NFC"]):  # NFC composes nothing across white space
        return None, False
    if kinds[-1:] != ["ByteLevel"] or (kinds[1:] and steps[-1]["add_prefix_space"]):  # a space for each part
        return None, False
    if kinds in (["ByteLevel"], ["Digits", "ByteLevel"]) and steps[-1]["use_regex"]:
        return re.compile(_GPT2), False
    if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        pattern = _SPLITS.get(steps[0]["pattern"].get("Regex", ""))
        if pattern and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
            return re.compile(pattern), False
    return None, False


def _is_spaces(step: dict[str, Any]) -> bool:
    """Whether a step does nothing but replace spaces with ▁ and add one in front."""
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
    """Units for a SentencePiece BPE: a text may be cut between two characters that no merge ever joins.

    A merge across a cut would join a piece ending with the first character and a piece starting with the second. The
    characters fall into groups that no merge connects (for LLaMA: the letters of each script, the punctuation; digits
    and line ends are alone). A unit is a run of one group with the spaces before it.
    """
    bytes_ = {f"<0x{number:02X}>" for number in range(256)}
    if not model["byte_fallback"] or not bytes_ <= model["vocab"].keys() or model["ignore_merges"]:
        return None  # unknown characters could fuse into one token, or a whole text be looked up
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
    """Exact token counts of conversations as a template renders them."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.known: dict[tuple[int, bool, str], int] = {}  # cleared between two conversations
        self._counts = Counts(template.tokenizer, template.encoders, frozenset(template.forbidden[False]))
        self._joints: dict[tuple[bool, int], list[int] | None] = {}

    def count(self, messages: list[dict[str, Any]], trial: bool = False) -> int:
        """The number of tokens of a conversation; a `trial` is not cached. Raises Reject."""
        return sum(self.tokens(run, trial) for run in self.template.runs(messages))

    def tokens(self, run: Run, trial: bool = False) -> int:
        """The number of tokens of one run of a rendering."""
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
        """Whether it fits by its bytes alone: a token is at least one byte, or the space added before a text."""
        return self._counts.bounded and sum(len(run.text.encode()) + 1 for run in runs) <= limit

    def joints(self, system: bool, pairs: int) -> list[int] | None:
        """Where each pair ends in the skeleton of a conversation of `pairs`, if the pairs' counts add up; else None.

        They add up if every pair after the first has the same pieces and begins a new run: then a pair has the same
        count in every such conversation, unless it is the first.
        """
        key = system, pairs
        if key not in self._joints:
            self._joints[key] = self._find_joints(system, pairs)
        return self._joints[key]

    def _find_joints(self, system: bool, pairs: int) -> list[int] | None:
        def pieces(number: int) -> list[Piece]:
            return self.template.skeleton(("system",) * system + ("user", "assistant") * number, False)

        if self.template.looks_at_texts:
            return None
        try:
            first, two, whole = pieces(1), pieces(2), pieces(pairs)
        except Reject:
            return None
        again = two[len(first) :]
        if two[: len(first)] != first or not again:
            return None
        after_token = first[-1].token is not None
        if after_token != (again[-1].token is not None):  # what follows would be encoded in different ways
            return None
        if not after_token and again[0].token is None and again[0].trained in (first[-1].trained, again[-1].trained):
            return None
        expected = list(first)
        for number in range(1, pairs):
            for piece in again:
                slot = piece.slot if piece.slot is None else piece.slot + 2 * number - 2
                expected.append(replace(piece, slot=slot))
        return list(range(len(first), len(expected) + 1, len(again))) if whole == expected else None
