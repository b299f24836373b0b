"""The counts of `vtools split`: records, turns, and rejected parts of records."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from vtools.records import filtering, streams
from vtools.records.jsonl import Record, Reject
from vtools.split.segments import Segment

_LINE = (
    "segments", "held_out", "overlong", "overlong_dropped", "truncated", "split_answers", "turns_dropped", "turns_lost",
)  # fmt: skip


class Tally(filtering.Rejects):
    """Rejects that also count turns: `turns_in == turns_out + turns_dropped + turns_lost`, always."""

    def __init__(
        self, rejects: str | None, files: list[str], size: Callable[[Record], tuple[int, int]], gone: str, rules: str
    ) -> None:
        """`size` returns a rejected record's turns and pairs; `gone` is the count: turns_dropped or turns_lost.

        `rules` are what counted, in words.
        """
        super().__init__("split", rejects, files)
        self.extra = Counter(dict.fromkeys(_LINE, 0))
        self.stats: Counter[str] = Counter(turns_in=0, turns_out=0, turns_repeated=0, tokens=0)
        self.longest = 0
        self._size, self._gone, self._rules = size, gone, rules

    def add(self, reject: Reject, value: streams.Value, record: Any = None) -> None:
        """Count a reject and its turns, and save it."""
        turns, pairs = self._size(record) if isinstance(record, dict) else (0, 0)
        self.stats["turns_in"] += turns
        self.extra[self._gone] += turns
        if reject.reason == "overlong":  # all of its pairs were, or some would remain
            self.extra["overlong"] += pairs
            self.extra["overlong_dropped"] += pairs
        super().add(reject, value, record)

    def take(self, segment: Segment) -> bool:
        """Count a segment and say whether to write it; a rejected part of a record is saved among the rejects."""
        for name, number in segment.counts.items():
            (self.extra if name in self.extra else self.stats)[name] += number
        if segment.reject is None:
            self.stats["tokens"] += segment.tokens or 0
            self.longest = max(self.longest, segment.tokens or 0)
            return True
        assert self.value is not None
        self.save(segment.reject, self.value, segment)
        return False

    def line(self) -> str:
        """The counts as one line for people, and what counted."""
        return f"{super().line()}; {self._rules}"

    def summary(self) -> dict[str, Any]:
        """The counts as one object, for --stats."""
        return super().summary() | self.stats | {"longest": self.longest}
