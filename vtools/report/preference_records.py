"""Preference records from judgments: the answer that was preferred ends the conversation, the other stays beside it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from vtools import provenance
from vtools.process import say
from vtools.records import jsonl
from vtools.records.jsonl import Record
from vtools.records.message import Message
from vtools.report.comparisons import Comparison, Turns, question_of
from vtools.report.reading import Known

TIE, UNREAD, NO_TEXT = "ties", "no verdict", "not all texts are known"


def write(path: str, compared: Iterable[Comparison], known: Known) -> None:
    """Write the records to a file, and say how many comparisons give none and why."""
    left_out = Counter[str]()
    count = 0
    with jsonl.output(path) as output:
        for record in records(compared, known, left_out):
            output.write(record)
            count += 1
    said = "".join(f"; {number} left out: {reason}" for reason, number in left_out.items())
    say("report", f"{count} preferences in {path}{said}")


def records(compared: Iterable[Comparison], known: Known, left_out: Counter[str]) -> Iterator[Record]:
    """A record for each comparison that somebody wins; `left_out` counts the others by the reason.

    The shape is that of `records.preferences`: `messages` end with the answer that more judges prefer, and `rejected`
    has the turns in which the other one differs from it.
    """
    for comparison in compared:
        outcome = comparison.outcome
        if outcome not in ("a", "b"):
            left_out[TIE if outcome else UNREAD] += 1
            continue
        last = comparison.turn  # of the judged turns: those after it were not seen
        asked, good, bad = (turns[:last] for turns in (comparison.asked(known), *comparison.answers(known)))
        if not asked or not len(asked) == len(good) == len(bad) or not all((*good, *bad)):
            left_out[NO_TEXT] += 1
            continue
        winner, loser = comparison.a, comparison.b
        if outcome == "b":
            winner, loser, good, bad = loser, winner, bad, good
        question = question_of(known, comparison.question, winner, loser)
        context = question.context if question else []
        shared = next((place for place, pair in enumerate(zip(good, bad, strict=True)) if len(set(pair)) > 1), None)
        if shared is None:
            left_out[TIE] += 1
            continue
        identity = f"{comparison.question}:{winner}>{loser}" + (f":{last}" if last else "")
        record: Record = {"id": identity, "messages": [*context, *_messages(asked, good)]}
        record["rejected"] = _messages(asked, bad)[2 * shared + 1 :]
        if comparison.category:
            record["category"] = comparison.category
        record |= {"model": winner, "rejected_model": loser, "judges": list(comparison.judged)}
        record["unanimous"] = not (comparison.orders_disagree or comparison.judges_disagree)
        yield provenance.stamp(record, "report")


def _messages(asked: Turns, answers: Turns) -> list[Message]:
    pairs = zip_longest(asked, answers)
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
