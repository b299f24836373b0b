"""Which side of --hold-out a conversation is on: by a hash, the same in every run, and all pieces of one together."""

import hashlib
import itertools
import re
from array import array
from collections.abc import Iterable
from typing import Any

from vtools.process import Failure, say
from vtools.records import conversation, jsonl, streams
from vtools.records.jsonl import Record, Reject
from vtools.records.naming import Names
from vtools.split.segments import Segment, base_id

_NUMBERED = re.compile(r"(.+)_(\d{1,9})")
_LENGTH = 20  # bits for the number of messages beside the number in an id


class Pieces:
    """Ids NAME_NUMBER of which the number is a turn: FastChat's split gives them to the pieces of a conversation.

    Many data sets count their rows like that, so an id alone says nothing. NAME is one conversation if its pieces
    follow each other: where one ends, give or take the messages that cleaning takes off, the next begins. It is also
    kept together if it has at most a hundredth of the records, which does no harm.
    """

    def __init__(self, values: Iterable[streams.Value], names: Names) -> None:
        """Reads all input."""
        found: dict[str, array[int]] = {}
        self.records = 0
        for value in values:
            record = jsonl.parse(value)[0]
            if isinstance(record, Reject):
                continue
            try:
                record = conversation.read(record, names)
            except Reject:
                continue
            self.records += 1
            if match := _NUMBERED.fullmatch(base_id(record)):
                length = min(len(record["messages"]), (1 << _LENGTH) - 1)
                found.setdefault(match[1], array("q")).append(int(match[2]) << _LENGTH | length)
        self.names = frozenset(name for name, pieces in found.items() if self._follow_each_other(sorted(pieces)))

    def _follow_each_other(self, pieces: list[int]) -> bool:
        if len(pieces) * 100 <= self.records:
            return True
        linked = 0
        for piece, after in itertools.pairwise(pieces):
            step, length = (after >> _LENGTH) - (piece >> _LENGTH), piece & (1 << _LENGTH) - 1
            if 0 < step < length - 1:  # they would overlap
                return False
            linked += step > 1 and length - 1 <= step <= length + 2
        return 2 * linked >= len(pieces) - 1 > 0

    def name(self, identity: str) -> str:
        """The name of the conversation that an id belongs to: the id itself, unless it is a piece's."""
        match = _NUMBERED.fullmatch(identity)
        return match[1] if match and match[1] in self.names else identity


class Sides:
    """Decides the side of each segment, and counts conversations."""

    def __init__(self, share: float, group: str | None, pieces: Pieces | None) -> None:
        """`group` is the key, with dots into nested objects, of which equal values stay together."""
        self.share, self.group, self.pieces = share, group, pieces
        self.seen: dict[bool, set[int]] = {False: set(), True: set()}
        self.segments = {False: 0, True: 0}

    def held(self, segment: Segment) -> bool:
        """Whether a segment is held out."""
        given = _at(segment, self.group) if self.group else None
        name = str(given) if given is not None else self.pieces.name(segment.base) if self.pieces else segment.base
        digest = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=8).digest())
        held = digest < self.share * 2**64
        self.seen[held].add(digest)
        self.segments[held] += 1
        return held

    def check(self, asked: str) -> None:
        """Report a share far from the one asked for. Raises Failure if nothing or everything is held out."""
        held, total = len(self.seen[True]), sum(map(len, self.seen.values()))
        if not total or not self.share:
            return
        if held in (0, total):
            what = "none" if not held else "each"
            raise Failure(
                f"--hold-out {asked}: {what} of {total} conversations would be held out; "
                "ask for another share, or say with --group KEY which records belong together"
            )
        written = self.segments[True] / sum(self.segments.values())
        if not self.share / 2 <= written <= min(2 * self.share, (1 + self.share) / 2):
            say("split", f"--hold-out {asked}: {written:.1%} of all segments, {held} of {total} conversations")


def _at(record: Record, path: str) -> Any:
    value: Any = record
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
