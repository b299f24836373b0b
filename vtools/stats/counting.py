"""Counts over records in one pass, with a few bytes of memory per record."""

import hashlib
import importlib.util
from array import array
from bisect import bisect_left
from collections import Counter
from typing import Any

from vtools.models.template import Template
from vtools.models.text_encoders import encoders
from vtools.models.tokenizer import Tokenizer
from vtools.records import conversation, filtering, language, streams
from vtools.records.jsonl import Record, Reject
from vtools.records.naming import NONE, Names

TURNS = tuple(2**power for power in range(7))
CHARACTERS = tuple(2**power for power in range(8, 18))
TOKENS = tuple(2**power for power in range(6, 16))
BATCH = 1 << 18  # characters tokenised at a time
NAMES = 1000  # distinct sources, licenses and reasons counted by name
HISTOGRAMS = {"user_turns": "user turns", "record_characters": "characters", "record_tokens": "tokens"}


class Counted:
    """The counts of the records so far."""

    def __init__(self, counts: filtering.Rejects, counting: Tokenizer | Template | None, names: Names = NONE) -> None:
        """`counts` receives records that are no conversations.

        Given a tokenizer, tokens of texts are counted; given a template, those of whole rendered conversations.
        """
        self.counts, self.before, self.names = counts, counts.reasons.copy(), names
        self.template = counting if isinstance(counting, Template) else None
        self.encoder = encoders(counting)[0] if isinstance(counting, Tokenizer) else None
        self.tells_languages = importlib.util.find_spec("pycld2") is not None
        self.records = self.messages = self.characters = self.tokens = self.segments = 0
        self.roles, self.languages = Counter[str](), Counter[str]()
        self.sources, self.licenses, self.reasons = Counter[str](), Counter[str](), Counter[str]()
        self.turns, self.lengths, self.token_lengths = Histogram(TURNS), Histogram(CHARACTERS), Histogram(TOKENS)
        self.texts, self.ids, self.cut = Distinct(), Distinct(), Distinct()
        self.waiting: list[list[str]] = []  # texts of records not tokenised yet
        self.waiting_size = 0

    def add(self, value: streams.Value, given: Record) -> None:
        """Count one object: a record of any shape, or a line of a rejects file."""
        if "reason" in given and "stage" in given:
            _tally(self.reasons, f"{given['stage']}: {given['reason']}")
            return
        self.records += 1
        try:
            record = conversation.read(given, self.names)
        except Reject as reject:
            self.counts.add(reject, value, given)
            return
        messages = record["messages"]
        texts = [message["content"] for message in messages]
        length = sum(map(len, texts))
        self.messages, self.characters = self.messages + len(messages), self.characters + length
        self.roles.update(message["role"] for message in messages)
        self.turns.add(sum(message["role"] == "user" for message in messages))
        self.lengths.add(length)
        self.texts.add(conversation.text_key(messages))
        if given.get("id") not in (None, ""):
            self.ids.add(_key(record["id"]))
        segment, source = record.get("segment"), record.get("source")
        if isinstance(segment, dict):
            self.segments += 1
            self.cut.add(_key(str(segment.get("of"))))
        source = source if isinstance(source, dict) else {}
        _tally(self.sources, str(source.get("kind")))
        _tally(self.licenses, str(source.get("license")))
        if self.tells_languages:
            self.languages[language.spoken(messages)] += 1
        if self.template:
            try:
                self._tokens(len(self.template.render(messages).ids))
            except Reject as reject:
                self.counts.add(reject, value, given)
        if self.encoder:
            self.waiting.append(texts)
            self.waiting_size += length
            if self.waiting_size > BATCH:
                self._tokenise()

    def _tokenise(self) -> None:
        assert self.encoder
        every = self.encoder.encode_batch_fast([text for texts in self.waiting for text in texts], False, False)
        lengths = iter(map(len, every))
        for texts in self.waiting:
            self._tokens(sum(next(lengths) for _ in texts))
        self.waiting, self.waiting_size = [], 0

    def _tokens(self, count: int) -> None:
        self.tokens += count
        self.token_lengths.add(count)

    def summary(self) -> dict[str, Any]:
        """The counts as one object."""
        if self.waiting:
            self._tokenise()
        rejected = self.counts.reasons - self.before
        reasons = self.reasons + Counter({f"stats: {name}": count for name, count in rejected.items()})
        return {
            "records": self.records,
            "messages": self.messages,
            "characters": self.characters,
            **({"tokens": self.tokens} if self.encoder or self.template else {}),
            "duplicate_texts": self.texts.repeated(),
            "duplicate_ids": self.ids.repeated(),
            "segments": self.segments,
            "conversations_cut": self.segments - self.cut.repeated(),
            "roles": dict(self.roles.most_common()),
            "user_turns": self.turns.named(),
            "record_characters": self.lengths.named(),
            **({"record_tokens": self.token_lengths.named()} if self.encoder or self.template else {}),
            **({"languages": dict(self.languages.most_common())} if self.tells_languages else {}),
            "sources": dict(self.sources.most_common()),
            "licenses": dict(self.licenses.most_common()),
            "reasons": dict(reasons.most_common(20)),
        }


class Histogram:
    """Counts of numbers by bins, given their upper bounds."""

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds, self.counts = bounds, [0] * (len(bounds) + 1)

    def add(self, number: int) -> None:
        """Count a number."""
        self.counts[bisect_left(self.bounds, number)] += 1

    def named(self) -> dict[str, int]:
        """The counts from the first bin that is not empty to the last."""
        names = [*(f"<={bound}" for bound in self.bounds), f">{self.bounds[-1]}"]
        full = [place for place, count in enumerate(self.counts) if count]
        return {names[place]: self.counts[place] for place in range(full[0], full[-1] + 1)} if full else {}


class Distinct:
    """The number of repeated keys, by 64 bits of each: at a million keys, wrong for one file in 37 million."""

    def __init__(self) -> None:
        self.parts = [array("Q") for _ in range(256)]

    def add(self, key: int) -> None:
        """Note a key."""
        self.parts[key & 255].append(key & 0xFFFFFFFFFFFFFFFF)

    def repeated(self) -> int:
        """The number of keys that were not the first of their kind."""
        return sum(len(part) - len(set(part)) for part in self.parts)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def _tally(counts: Counter[str], name: str) -> None:
    counts[name if name in counts or len(counts) < NAMES else "(others)"] += 1


def picture(summary: dict[str, Any], path: str) -> bytes:
    """The distribution of turns, characters and tokens over the records."""
    from vtools import plots

    panels = {f"Records by {name}": summary[key] for key, name in HISTOGRAMS.items() if key in summary}
    return plots.picture(path, plots.histograms(f"{summary['records']:,} records by their length", panels))
