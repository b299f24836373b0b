"""The counts of `vtools clean`: records, turns, and what was found in the records that are kept."""

from collections import Counter
from typing import Any

from vtools.clean.draft import Draft
from vtools.records import filtering, streams
from vtools.records.jsonl import Reject


class Tally(filtering.Rejects):
    """Rejects that also count turns: `turns_in == turns_out + turns_dropped`, always.

    A turn is a message that is not the system's. One that was merged into another is not dropped, as its text stays:
    the output has `turns_out - turns_merged` messages.
    """

    def __init__(self, rejects: str | None, files: list[str]) -> None:
        super().__init__("clean", rejects, files)
        self.extra["html_converted"] = 0
        self.redacted: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.turns_in = self.turns_merged = 0
        self.lost: Counter[str] = Counter()  # turns by reason

    def add(self, reject: Reject, value: streams.Value, record: Any = None) -> None:
        """Count a reject and its turns, and save it."""
        super().add(reject, value, record)
        self.turns_in += reject.turns
        self.lost["rejected"] += reject.turns
        if reject.reason == "lang":
            self.languages[reject.detail] += 1

    def take(self, made: Draft) -> None:
        """Count a record that is kept."""
        self.extra["html_converted"] += made.converted
        self.turns_in += made.turns
        if made.lost:
            self.turns_merged += made.lost.pop("merged", 0)
            self.lost.update(made.lost)
        if made.redacted:
            self.redacted.update(made.redacted)
        if made.language:
            self.languages[made.language] += 1

    def turns(self) -> list[str]:
        """The counts of turns, if some were dropped."""
        if not (dropped := self.lost.total()):
            return []
        reasons = ", ".join(f"{reason} {turns}" for reason, turns in self.lost.most_common() if turns)
        out = self.turns_in - dropped
        return [f"turns_in {self.turns_in}, turns_out {out}, turns_dropped {dropped} ({reasons})"]

    def summary(self) -> dict[str, Any]:
        """The counts as one object, for --stats."""
        dropped = self.lost.total()
        found = {"redacted": self.redacted, "languages": self.languages}
        return {
            **super().summary(),
            "turns_in": self.turns_in,
            "turns_out": self.turns_in - dropped,
            "turns_dropped": dropped,
            "turn_reasons": dict(sorted((+self.lost).items())),
            "turns_merged": self.turns_merged,
            **{name: dict(counts.most_common()) for name, counts in found.items() if counts},
        }
