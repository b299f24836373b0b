"""The steps that are off by default and look at one record alone (`dup_near` is in `steps.ordered`)."""

import functools
from collections import Counter

from vtools.clean import blocked_words, control_tokens, pii, refusals, turns
from vtools.clean.choices import Choices
from vtools.clean.draft import Draft, Step, change, each, test
from vtools.inference.moderation import Moderator
from vtools.records import language, overlap
from vtools.records.jsonl import Record, Reject


def changing(choices: Choices) -> list[Step]:
    """The chosen steps that change texts."""
    steps = []
    if choices.special_tokens == "break":
        steps.append(change("special_token", _break_special))
    if choices.pii:
        steps.append(change("pii", functools.partial(_pii, choices.pii)))
    return steps


def judging(choices: Choices) -> list[Step]:
    """The chosen steps that drop records, the cheap ones first.

    What may not be in the data may not be in a rejected answer either. A refusal, another language or a flagged text
    may be why it is the worse one.
    """
    steps = []
    if choices.special_tokens == "drop":
        steps.append(test("special_token", _special, alike=True))
    if choices.blocked_words:
        blocked = blocked_words.Phrases(blocked_words.read(choices.blocked_words))
        steps.append(test("blocked_word", lambda record: blocked.found(record["messages"]), alike=True))
    if choices.drop_refusals or choices.refusals:
        phrases = blocked_words.Phrases(blocked_words.read(choices.refusals) if choices.refusals else ())
        steps.append(test("refusal", functools.partial(_refusal, choices.drop_refusals, phrases)))
    if choices.keep_lang is not None or choices.skip_lang is not None:
        keep = language.codes("--keep-lang", choices.keep_lang)
        skip = language.codes("--skip-lang", choices.skip_lang)
        steps.append(Step("lang", functools.partial(_language, keep, skip)))
    if choices.decontaminate:
        index = overlap.read(choices.decontaminate, choices.decontaminate_ngram)
        steps.append(test("contaminated", functools.partial(_contaminated, index), alike=True))
    if choices.moderation:
        moderator = Moderator(choices.moderation, choices.moderation_model)
        steps.append(Step("moderation", functools.partial(_moderation, moderator)))
    return steps


def _refusal(known: bool, phrases: blocked_words.Phrases, record: Record) -> str | None:
    for place, message in enumerate(record["messages"] if known else ()):
        if message["role"] == "assistant" and (declined := refusals.found(message["content"])):
            return f"messages[{place}]: {declined}"
    return phrases.found(record["messages"], "assistant")


def _special(record: Record) -> str | None:
    for place, message in enumerate(record["messages"]):
        if token := control_tokens.found(message["content"]):
            return f"messages[{place}]: {token}"
    return None


def _break_special(made: Draft) -> None:
    before = made.record["messages"]
    made.record["messages"] = each(before, lambda message: control_tokens.broken(message["content"]))


def _pii(mode: str, made: Draft) -> str | None:
    before = made.record["messages"]
    counts: Counter[str] = Counter()
    rules = pii.possible(turns.shape(before))
    after = each(before, lambda message: pii.redacted(message["content"], rules, counts)) if rules else before
    if not counts:
        return None
    said = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
    if mode == "drop":
        raise Reject("pii", said)
    made.redacted = counts
    if mode == "redact":
        made.record["messages"] = after
    return said


def _language(keep: frozenset[str], skip: frozenset[str], made: Draft) -> str:
    code = language.spoken(made.record["messages"])
    if code in skip or (keep and code not in keep):
        raise Reject("lang", code)
    made.record["lang"] = made.language = code
    return code


def _contaminated(index: overlap.Index, record: Record) -> str | None:
    hit = next(index.hits(message["content"] for message in record["messages"]), None)
    return None if hit is None else str(hit)


def _moderation(moderator: Moderator, made: Draft) -> None:
    made.record["moderation"] = moderator.judge(made.record["messages"])
