"""Cutting one conversation into segments, greedily by turn pairs, with the template's own token counts."""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

from vtools import provenance
from vtools.models.template import Run, load_template, refuse_empty
from vtools.models.tokenizer import load_tokenizer
from vtools.records import conversation, preferences
from vtools.records.jsonl import Record, Reject
from vtools.records.naming import NONE, Names
from vtools.split import cut_answers
from vtools.split.token_counts import Rendering

Messages = list[dict[str, Any]]
Overlong = Literal["keep", "drop", "truncate", "split-answer"]

_WINDOW = 32  # pairs rendered together


class Segment(dict[str, Any]):
    """A record to write, or (with `reject`) a part to reject; attributes carry its counts."""

    def __init__(
        self, record: Record, base: str, counts: dict[str, int], tokens: int | None, reject: Reject | None = None
    ) -> None:
        """`base` decides its side of --hold-out; `tokens` is None if they did not have to be counted."""
        super().__init__(record)
        self.base, self.counts, self.tokens, self.reject = base, counts, tokens, reject


@lru_cache(maxsize=1)
def rendering(tokenizer: str, template: str | None, system: str | None, fold_system: bool) -> Rendering:
    """The template and tokenizer that count, loaded once per process."""
    return Rendering(load_template(template, load_tokenizer(tokenizer), system, fold_system))


def split(
    record: Record,
    *,
    tokenizer: str,
    template: str | None,
    system: str | None = None,
    fold_system: bool = False,
    max_tokens: int,
    overlong: Overlong = "keep",
    overlap_turns: int = 0,
    exact: bool = False,
    names: Names = NONE,
) -> list[Segment] | Reject:
    """Cut a conversation between turn pairs into segments of at most `max_tokens` tokens, greedily.

    Concatenated without their `overlap`, the segments' messages are the conversation's; each segment repeats the
    system message. `overlong` says how to treat a pair that cannot fit. Ids are ID_START, as FastChat's
    (split_long_conversation.py); START is the index of the segment's first new message, not counting the system
    message. Without `exact`, a conversation that fits by its bytes alone is not counted.
    """
    record = conversation.read(record, names)
    base = base_id(record)
    refuse_empty(record["messages"])
    talk = _Talk(record["messages"], rendering(tokenizer, template, system, fold_system), max_tokens)
    if not talk.pairs:
        return Reject("empty", "no turns")
    turns = talk.starts[-1]
    whole, tokens = talk.fits(exact)
    made = [] if whole else talk.cut(overlong, overlap_turns)
    if len(made) == 1 and not made[0].note and made[0].tokens <= max_tokens:
        whole, tokens = True, made[0].tokens
    if whole:
        counts = {"segments": 1, "turns_in": turns, "turns_out": turns}
        return [Segment(provenance.stamp(record, "split"), base, counts, tokens)]
    if all(piece.reject for piece in made):
        return made[0].reject or Reject("overlong")
    made[0].counts["turns_in"] = turns
    return _records(record, base, talk.system, made)


def size(record: Record, names: Names = NONE) -> tuple[int, int]:
    """The numbers of turns and turn pairs in an object of any shape; 0 if it cannot be read."""
    try:
        pairs = _pairs(conversation.read(record, names)["messages"])[1]
    except Reject:
        return 0, 0
    return sum(map(len, pairs)), len(pairs)


@dataclass
class _Piece:
    """A segment being built: messages without the system message, index of the first new one, notes."""

    messages: Messages
    start: int
    tokens: int
    counts: dict[str, int]
    note: dict[str, Any] = field(default_factory=dict)
    reject: Reject | None = None


class _Talk:
    """The turn pairs of one conversation, and their token counts."""

    def __init__(self, messages: Messages, rendering: Rendering, limit: int) -> None:
        self.system, self.pairs = _pairs(messages)
        self.starts = list(accumulate(map(len, self.pairs), initial=0))
        self.limit = limit
        self._rendering = rendering
        self._adds: dict[int, int] = {}  # tokens of a pair that follows another, by its index
        self._regular = all([turn["role"] for turn in pair] == ["user", "assistant"] for pair in self.pairs)
        rendering.known.clear()

    def _messages(self, start: int, end: int) -> Messages:
        return self.system + [message for pair in self.pairs[start:end] for message in pair]

    def _count(self, start: int, end: int) -> int:
        return self._rendering.count(self._messages(start, end))

    def fits(self, exact: bool) -> tuple[bool, int | None]:
        """Whether the whole conversation fits, and its tokens if they were counted."""
        if len(self.pairs) > _WINDOW:
            return False, None
        runs = self._rendering.template.runs(self._messages(0, len(self.pairs)))
        if not exact and self._rendering.fits_surely(runs, self.limit):
            return True, None
        tokens = self._learn(runs, 0, len(self.pairs))
        return tokens <= self.limit, tokens

    def cut(self, overlong: Overlong, overlap: int) -> list[_Piece]:
        """The conversation's segments. Raises Reject if the template cannot render it."""
        pieces: list[_Piece] = []
        begin = start = 0
        while start < len(self.pairs):
            tokens = self._count(start, start + 1)
            if tokens > self.limit and overlong != "keep":
                pieces += self._shorten(start, tokens, overlong)
                start += 1
                begin = start
                continue
            back = min(overlap, start - begin)
            while back and (longer := self._count(start - back, start + 1)) > self.limit:
                back -= 1
            begin = start - back
            end, tokens = self._longest(begin, start + 1, longer if back else tokens)
            repeated = self.starts[start] - self.starts[begin]
            counts = {
                "segments": 1,
                "turns_out": self.starts[end] - self.starts[start],
                "turns_repeated": repeated,
                "overlong": int(tokens > self.limit),
            }
            messages = self._messages(begin, end)[len(self.system) :]
            pieces.append(
                _Piece(messages, self.starts[start], tokens, counts, {"overlap": repeated} if repeated else {})
            )
            start = end
        return pieces

    def _longest(self, begin: int, end: int, tokens: int) -> tuple[int, int]:
        """End and tokens of the longest segment from pair `begin`; up to pair `end` it has `tokens` tokens."""
        while self._regular and end < len(self.pairs) and self._joints(end + 1 - begin):
            if tokens + self._add(end) > self.limit:
                return end, tokens
            tokens += self._add(end)
            end += 1
        # A pair's count depends on its position: count whole segments, doubling the step, then halving it.
        step = 1
        while step:
            longer = self._count(begin, end + step) if end + step <= len(self.pairs) else self.limit + 1
            if longer <= self.limit:
                end, tokens, step = end + step, longer, 2 * step
            else:
                step //= 2
        return end, tokens

    def _joints(self, pairs: int) -> list[int] | None:
        return self._rendering.joints(bool(self.system), pairs)

    def _add(self, pair: int) -> int:
        if pair not in self._adds:
            low, pairs = pair - 1, min(_WINDOW, len(self.pairs) - pair + 1)
            pairs = pairs if self._joints(pairs) else 2
            self._learn(self._rendering.template.runs(self._messages(low, low + pairs)), low, pairs)
        return self._adds[pair]

    def _learn(self, runs: list[Run], low: int, pairs: int) -> int:
        """Note the tokens of each pair after `low` in a rendering of `pairs` pairs; returns the total."""
        counts = [self._rendering.tokens(run) for run in runs]
        joints = self._joints(pairs) if self._regular else None
        if joints:
            pair = 0
            sums = [0] * pairs
            for run, tokens in zip(runs, counts, strict=True):
                if run.place >= joints[pair]:
                    pair += 1
                sums[pair] += tokens
            self._adds |= {low + pair: sums[pair] for pair in range(1, pairs)}
        return sum(counts)

    def _shorten(self, index: int, tokens: int, overlong: Overlong) -> list[_Piece]:
        """The pieces of a pair that is too long by itself, as --overlong says."""
        pair, start = self.pairs[index], self.starts[index]
        asked = pair[:1] if pair[0]["role"] == "user" else []
        replies = pair[len(asked) :]
        reject = Reject("overlong", f"{tokens} tokens in one pair of turns, --max-tokens is {self.limit}")
        counts = {"overlong": 1, "overlong_dropped": 1, "turns_dropped": len(pair)}
        dropped = _Piece(pair, start, tokens, counts, reject=reject)
        # A question cut in the middle would teach nothing.
        if overlong == "drop" or not replies or self._counter(asked, replies[0])("x") > self.limit:
            return [dropped]
        if overlong == "truncate":
            return self._truncate(asked, replies, start) or [dropped]
        return self._split_answer(asked, replies, start) or [dropped]

    def _truncate(self, asked: Messages, replies: Messages, start: int) -> list[_Piece]:
        kept = list(asked)
        for reply in replies:
            text = cut_answers.truncate(reply["content"], self._counter(kept, reply), self.limit)
            if text:
                kept.append(reply | {"content": text})
            if text != reply["content"]:
                break
        rest = replies[len(kept) - len(asked) :]
        if len(kept) == len(asked):
            return []
        lost = sum(len(reply["content"]) for reply in replies) - sum(
            len(part["content"]) for part in kept[len(asked) :]
        )
        counts = {"segments": 1, "turns_out": len(kept), "overlong": 1, "truncated": 1}
        tokens = self._rendering.count(self.system + kept, trial=True)
        pieces = [_Piece(kept, start, tokens, counts, {"truncated": lost})]
        if rest:  # two answers in a row: nothing of the second fits
            reject = Reject("overlong", "the answer before it was truncated")
            pieces.append(_Piece(asked + rest, start + len(kept), 0, {"turns_dropped": len(rest)}, reject=reject))
        return pieces

    def _split_answer(self, asked: Messages, replies: Messages, start: int) -> list[_Piece]:
        made, current = [], list(asked)
        for reply in replies:
            if len(current) > len(asked) and self._counter(current, reply)(reply["content"]) > self.limit:
                made.append(current)
                current = list(asked)
            parts = cut_answers.parts(reply["content"], self._counter(current, reply), self.limit)
            if not parts:
                return []
            for part in parts[:-1]:
                made.append([*current, reply | {"content": part}])
                current = list(asked)
            current.append(reply | {"content": parts[-1]})
        made.append(current)
        pieces = []
        for number, messages in enumerate(made):
            tokens = self._rendering.count(self.system + messages, trial=True)
            note = {"part": number, "parts": len(made)}
            pieces.append(_Piece(messages, start, tokens, {"segments": 1}, note))
        pieces[0].counts |= {"turns_out": len(asked) + len(replies), "overlong": 1, "split_answers": 1}
        return pieces

    def _counter(self, before: Messages, reply: dict[str, Any]) -> cut_answers.Count:
        """A function that counts the segment ending with this reply, for other texts of the reply."""
        lead = self.system + before
        return lambda text: self._rendering.count([*lead, reply | {"content": text}], trial=True)


def _records(record: Record, base: str, system: Messages, made: list[_Piece]) -> list[Segment]:
    """The segments of a record, with their ids and, in `segment`, their origin."""
    known = record.get("segment")
    of = known.get("of") if isinstance(known, dict) else None
    of = of if isinstance(of, str) else record["id"]
    kept = sum(not piece.reject for piece in made)
    segments: list[Segment] = []
    for piece in made:
        part = piece.note.get("part")
        name = record["id"] if len(made) == 1 else f"{record['id']}_{piece.start}" + (f".{part}" if part else "")
        about = {"of": of}
        if not piece.reject:
            about |= {"index": sum(not one.reject for one in segments), "count": kept, "tokens": piece.tokens}
        made_of = record | {"id": name, "messages": system + piece.messages, "segment": about | piece.note}
        if preferences.of(record) and piece.messages[-1] is not record["messages"][-1]:
            del made_of["rejected"]  # it is an answer to the whole conversation
        if not piece.reject:
            provenance.stamp(made_of, "split")
        segments.append(Segment(made_of, base, piece.counts, piece.tokens, piece.reject))
    return segments


def _pairs(messages: Messages) -> tuple[Messages, list[Messages]]:
    """The leading system message, and the turns in groups that each start with a user turn."""
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    pairs: list[Messages] = []
    for message in messages[len(system) :]:
        if message["role"] == "user" or not pairs:
            pairs.append([])
        pairs[-1].append(message)
    return system, pairs


def base_id(record: Record) -> str:
    """The id of the conversation that a record is, or is a segment of."""
    segment = record.get("segment")
    base = segment.get("of") if isinstance(segment, dict) else None
    return base if isinstance(base, str) else record["id"]
