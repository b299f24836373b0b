"""FastChat's own cuts (fastchat/data/split_long_conversation.py, 0.2.36); the turns that it loses are counted."""

import itertools
import re
from collections.abc import Callable
from functools import lru_cache

from vtools.models.text_encoders import FIRST, encoders
from vtools.models.tokenizer import load_tokenizer
from vtools.records import conversation
from vtools.records.jsonl import Record, Reject
from vtools.split.segments import Segment, base_id
from vtools.split.token_counts import Counts

_EACH = 6  # what FastChat adds to each message for its role and separators
_ROLES = ("human", "gpt")


@lru_cache(maxsize=1)
def counter(name: str) -> Callable[[str], int]:
    """A function that counts the tokens of a single text, loaded once per process.

    It includes the tokenizer's own first token, and reads names of control tokens as those tokens.
    """
    tokenizer = load_tokenizer(name)
    counts = Counts(tokenizer, encoders(tokenizer))
    added = tokenizer.backend.num_special_tokens_to_add(False)
    control = re.compile("|".join(map(re.escape, tokenizer.added)) or r"(?!)")

    def tokens(text: str) -> int:
        count = counts.count(FIRST, text) if text and not control.search(text) else None
        return len(tokenizer.backend.encode(text).ids) if count is None else count + added

    return tokens


def split(record: Record, *, tokenizer: str, max_tokens: int) -> list[Segment] | Reject:
    """The samples that FastChat makes of a conversation, and, with `reject`, the turns that it loses.

    It loses an odd last message, the last rounds if the very last one overflows, and samples whose roles do not
    alternate human, gpt. It keeps a round that is too long by itself, unless it is the last.
    """
    turns = _turns(record)
    name = conversation.read(record)["id"] if record.get("id") in (None, "") else str(record["id"])
    base = base_id({"id": name, "segment": record.get("segment")})
    if len(turns) < 2:
        return Reject("too_short" if turns else "empty", f"{len(turns)} messages")
    count = counter(tokenizer)
    rounds = [sum(count(turn["value"]) + _EACH for turn in pair) for pair in zip(turns[::2], turns[1::2], strict=False)]
    cuts, length, full = [0], 0, False
    for place, tokens in enumerate(rounds):
        full = length + tokens > max_tokens
        if full:
            cuts.append(place)
            length = 0
        length += tokens
    if not full:
        cuts.append(len(rounds))

    def made(start: int, end: int, reject: Reject | None = None) -> Segment:
        sample = {"id": f"{name}_{start}", "model": record.get("model", ""), "conversations": turns[start:end]}
        tokens = sum(rounds[start // 2 : end // 2])
        counts = {"turns_lost": end - start} if reject else {"segments": 1, "turns_out": end - start}
        counts["overlong"] = int(not reject and tokens > max_tokens)
        return Segment(sample, base, counts, tokens, reject)

    segments = []
    for start, end in itertools.pairwise(cuts):
        if start < end:
            wrong = _wrong_role(turns[2 * start : 2 * end])
            segments.append(made(2 * start, 2 * end, Reject("role_order", wrong) if wrong else None))
    end = 2 * cuts[-1]
    if end < len(rounds) * 2:
        segments.append(made(end, len(rounds) * 2, Reject("overlong", "FastChat loses the rounds after its last cut")))
    if len(turns) % 2:
        reject = Reject("unanswered", "FastChat loses the last of an odd number of messages")
        segments.append(made(len(turns) - 1, len(turns), reject))
    if all(segment.reject for segment in segments):
        return segments[0].reject or Reject("overlong")
    segments[0].counts["turns_in"] = len(turns)
    return segments


def size(record: Record) -> tuple[int, int]:
    """The number of messages that FastChat finds in an object, and 0 overlong pairs: it never reports any."""
    try:
        return len(_turns(record)), 0
    except Reject:
        return 0, 0


def _turns(record: Record) -> list[Record]:
    """The messages in FastChat's shape: those of `conversations` as they are, other shapes' converted by role."""
    found = record.get("conversations")
    if not isinstance(found, list):
        return conversation.to_sharegpt(conversation.read(record))["conversations"]
    for index, turn in enumerate(found):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            raise Reject("bad_schema", f"conversations[{index}] lacks from or value")
    return found


def _wrong_role(turns: list[Record]) -> str:
    for index, turn in enumerate(turns):
        if turn["from"] != _ROLES[index % 2]:
            return f"{turn['from']!r} instead of {_ROLES[index % 2]}"
    return ""
