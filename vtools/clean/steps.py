"""The cleaning steps, built once from the options; `clean` runs them together, `--explain` one at a time."""

import functools
import importlib.util
from collections import defaultdict
from typing import Any

from vtools import provenance
from vtools.clean import duplicates, filters, turns
from vtools.clean.choices import Choices
from vtools.clean.draft import Draft, Step, change, each, test, with_texts
from vtools.clean.html import convert, questions
from vtools.records import conversation, preferences
from vtools.records.conversation import Message
from vtools.records.jsonl import Record, Reject
from vtools.records.naming import Names


@functools.cache
def pure(choices: Choices) -> tuple[Step, ...]:
    """The steps that need no other record: cheap ones first; those that change texts before those that judge them."""
    if choices.preset == "vicuna":
        from vtools.clean import vicuna

        steps = vicuna.steps(choices.engine)
    else:
        steps = [
            Step("read", functools.partial(_read, choices.names)),
            test("plugin", filters.plugin),
            change("html", functools.partial(_html, choices.engine, _converter(choices.engine))),
            Step("turns", functools.partial(_turns, choices)),
        ]
    judging = [] if choices.preset else _JUDGING
    if choices.has_optional():
        from vtools.clean import optional

        steps += [*optional.changing(choices), *judging, *optional.judging(choices)]
    else:
        steps += judging
    return tuple(step for step in steps if step.name not in choices.keep)


def ordered(choices: Choices, longer: duplicates.Longer | None = None, explain: bool = False) -> list[Step]:
    """The steps that compare with earlier records, nothing seen yet; they must get drafts in input order."""
    steps = []
    if choices.preset == "vicuna":
        from vtools.clean import vicuna

        steps.append(Step("duplicates", vicuna.Duplicates().check))
    elif "dup_exact" not in choices.keep:
        steps.append(Step("dup_exact", functools.partial(_exact, duplicates.Exact(name_first=explain), longer)))
    if choices.near_duplicates is not None:
        from vtools.clean import near_duplicates

        near = near_duplicates.Near(choices.near_duplicates)
        steps.append(Step("dup_near", functools.partial(_near, near)))
    return steps


def draft(choices: Choices, value: Record) -> Draft:
    """A record after all steps that need no other record. Raises Reject, which has the record's turns."""
    made = Draft(value)
    try:
        for step in pure(choices):
            step.take(made)
    except Reject as reject:
        reject.turns = made.turns
        raise
    prepare(choices, made)
    return made


def prepare(choices: Choices, made: Draft) -> None:
    """Stamp the record and compute the keys that the ordered steps need: in parallel here, not in their one process."""
    messages = made.record["messages"]
    if choices.pii == "tag" and made.redacted:
        made.record["pii"] = dict(sorted(made.redacted.items()))
    provenance.stamp(made.record, "clean", **({_CONVERTED: made.converted} if made.converted else {}))
    if "dup_exact" not in choices.keep:
        made.key = duplicates.key(made.record, turns.joined(messages))
    if choices.dedupe == "longest":
        made.starts = duplicates.starts(made.record)
    if choices.near_duplicates is not None:
        from vtools.clean import near_duplicates

        made.sketch = near_duplicates.sketch(messages)


def _read(names: Names, made: Draft) -> None:
    made.record = conversation.read(made.record, names)
    made.turns = turns.count(made.record["messages"])


def _html(engine: str, converter: str, made: Draft) -> str | None:
    before = made.record["messages"]
    if b"\1" in turns.shape(before):
        texts = [convert.without_controls(message["content"]) for message in before]
    else:
        texts = [message["content"] for message in before]
    answers = [place for place, message in enumerate(before) if message["role"] == "assistant"]
    tags = b"<" in turns.joined(before)
    if tags or any([convert.has_counter(texts[place]) for place in answers]):
        converted, count = convert.counted([texts[place] for place in answers], engine)
        for place, text in zip(answers, converted, strict=True):
            texts[place] = text
        made.converted += count
    if made.converted:
        asked = [place for place, message in enumerate(before) if message["role"] == "user"]
        for place, text in zip(asked, questions.unescaped([texts[place] for place in asked]), strict=True):
            texts[place] = text
    made.record["messages"] = with_texts(before, texts)
    return converter if tags and made.record["messages"] is not before else None


def _converter(engine: str) -> str:
    fast = engine != "reference" and importlib.util.find_spec("turbohtml") is not None
    return "turbohtml" if fast else "markdownify"


def _readable(message: Message, engine: str) -> str:
    text: str = message["content"]
    return convert.to_markdown(text, engine) if message["role"] == "assistant" else convert.without_controls(text)


def _turns(choices: Choices, made: Draft) -> None:
    before = made.record["messages"]
    lost: turns.Lost = defaultdict(int)
    messages = turns.ordered(before, choices.merge_same_role, lost)
    # Two joined texts may look like HTML although neither does.
    if choices.merge_same_role and messages is not before and "html" not in choices.keep:
        messages = each(messages, lambda message: _readable(message, choices.engine))
    kept = turns.answered(messages, lost)
    made.record["messages"], made.lost = kept, lost
    if "rejected" in made.record and (answer := preferences.of(made.record)):
        if lost["unanswered"] or kept[-1] is not messages[-1]:
            raise Reject("empty", "the chosen answer, or its question")
        if any([turns.is_empty(message["content"]) for message in answer]):
            raise Reject("empty", "the rejected answer")


def _wrong_list(made: Draft) -> None:
    """No list that this tool converted: its numbers are those of the page, where each list begins at its own."""
    notes = made.record.get("vtools")
    earlier = isinstance(notes, list) and any([isinstance(note, dict) and note.get(_CONVERTED) for note in notes])
    if not made.converted and not earlier:
        _WRONG_LIST.take(made)


_CONVERTED = "html"  # in the note of this tool: how many answers it converted
_WRONG_LIST = test("wrong_list", filters.wrong_list, alike=True)
# A rejected answer may be the worse one for being in a loop of digits, or short; never for what its site did to it.
_JUDGING = [
    test("too_short", filters.too_short),
    test("blocked_response", filters.blocked_response, alike=True),
    test("rep_digits", filters.rep_digits),
    Step("wrong_list", _wrong_list),
]


def _exact(exact: duplicates.Exact, longer: duplicates.Longer | None, made: Draft) -> None:
    if detail := (longer and longer.goes_on(made.key)) or exact.before(made.key, made.record["id"]):
        raise Reject("dup_exact", detail)


def _near(near: Any, made: Draft) -> None:
    if detail := near.before(made.sketch, made.record["id"]):
        raise Reject("dup_near", detail)
