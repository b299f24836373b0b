"""Which of the conversations found are read and kept: a sample, those since a date; and what their license is."""

import datetime
import hashlib
from collections.abc import Collection, Iterator, Sequence

from vtools.fetch import turns
from vtools.process import UsageFailure
from vtools.records import filtering, streams
from vtools.records.jsonl import Record, Reject


def sampled(
    values: Iterator[streams.Value], share: float | None, seed: int, counts: filtering.Rejects
) -> Iterator[streams.Value]:
    """The values that a share keeps, the same ones in any order or company: a hash of each decides (BLAKE2b)."""
    key = str(seed).encode()
    for value in values:
        if share is not None and not value.torn and not value.foreign:
            drawn = int.from_bytes(hashlib.blake2b(value.raw, digest_size=8, key=key).digest())
            if drawn >= share * 2**64:
                counts.extra["not sampled"] += 1
                continue
        yield value


def date(text: str | None) -> str | None:
    """The time at which a day begins, or the time that the text gives. Raises UsageFailure."""
    if text is None:
        return None
    found = turns.when(text)
    if found is None:
        today = datetime.datetime.now(datetime.UTC).date()
        raise UsageFailure(f"--since {text}: write a date as in --since {today}, or a time as in {today}T12:00:00Z")
    return found


def since(records: list[Record], earliest: str | None) -> list[Record]:
    """The records that were made or continued since then. Raises Reject if there is none; so has one without a time."""
    if earliest is None:
        return records
    times = [_time(record) for record in records]
    kept = [record for record, time in zip(records, times, strict=True) if time and time >= earliest]
    if not kept:
        latest = max(filter(None, times), default=None)
        raise Reject("too_old", f"it is from {latest}" if latest else "it has no time")
    return kept


def _time(record: Record) -> str | None:
    source = record.get("source")
    known = source if isinstance(source, dict) else {}
    return turns.when(known.get("updated_at")) or turns.when(known.get("created_at"))


def licenses(given: Sequence[str] | None, kinds: Collection[str]) -> dict[str, str]:
    """The licenses by kind of source, that of all others under "". Raises UsageFailure."""
    found: dict[str, str] = {}
    for one in given or ():
        kind, _, name = one.rpartition("=")
        if not name or kind in found:
            wrong = f"the license of {kind or 'all'} is given twice" if name else "write NAME or KIND=NAME"
            raise UsageFailure(f"--license {one}: {wrong}")
        if kind and kind not in kinds:
            raise UsageFailure(f"--license {one}: no source is called {kind}; see vtools fetch --list-sources")
        found[kind] = name
    return found
