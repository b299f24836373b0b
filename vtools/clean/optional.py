"""The steps that are off by default, and those of the Vicuna preset."""

from __future__ import annotations

import functools
from collections import Counter

from vtools.clean import control_tokens, pii, turns, vicuna
from vtools.clean import near_duplicates as near
from vtools.clean import refusals as phrases
from vtools.clean.steps import Choices, Draft, Step, each, test
from vtools.inference.moderation import Moderator
from vtools.process import Failure
from vtools.records import language, overlap
from vtools.records.jsonl import Record, Reject


def changing(choices: Choices) -> list[Step]:
    """The chosen steps that change texts."""
    steps = []
    if choices.special_tokens == "break":
        steps.append(Step("special_token", _break_special))
    if choices.personal is not None:
        steps.append(Step("pii", functools.partial(_personal, choices.personal)))
    return steps


def judging(choices: Choices) -> list[Step]:
    """The chosen steps that drop records, the cheap ones first."""
    steps = []
    if choices.special_tokens == "drop":
        steps.append(test("special_token", _special))
    if choices.blocked_words:
        blocked = phrases.Phrases(phrases.read(choices.blocked_words))
        steps.append(test("blocked_word", lambda record: blocked.found(record["messages"])))
    if choices.drop_refusals or choices.refusals:
        listed = phrases.REFUSALS if choices.drop_refusals else ()
        refusals = phrases.Phrases(listed + (phrases.read(choices.refusals) if choices.refusals else ()))
        steps.append(test("refusal", lambda record: refusals.found(record["messages"], "assistant")))
    if choices.keep_languages or choices.skip_languages:
        steps.append(Step("lang", functools.partial(_language, choices.keep_languages, choices.skip_languages)))
    if choices.questions:
        index = overlap.read(choices.questions, choices.ngram)
        steps.append(test("contaminated", functools.partial(_contaminated, index)))
    if choices.moderation:
        steps.append(Step("moderation", functools.partial(_moderation, Moderator(*choices.moderation))))
    return steps


def near_duplicates(threshold: float) -> Step:
    """The step that drops what is nearly the same as one before."""
    return Step("dup_near", functools.partial(_near, near.Near(threshold)))


def vicuna_steps(choices: Choices) -> list[Step]:
    """FastChat's rules for one record."""
    return [Step("read", _vicuna_read), Step("texts", functools.partial(_vicuna_texts, choices.engine))]


def vicuna_duplicates() -> Step:
    """FastChat's rules for what came before."""
    return Step("duplicates", functools.partial(_vicuna_duplicates, vicuna.Duplicates()))


def _special(record: Record) -> str | None:
    for place, message in enumerate(record["messages"]):
        if token := control_tokens.found(message["content"]):
            return f"messages[{place}]: {token}"
    return None


def _break_special(made: Draft) -> None:
    before = made.record["messages"]
    broken = each(before, lambda message: control_tokens.broken(message["content"]))
    made.record["messages"] = broken


def _personal(mode: str, made: Draft) -> str | None:
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
    if mode == "tag":
        made.record["pii"] = dict(sorted(counts.items()))
    else:
        made.record["messages"] = after
    return said


def _language(keep: frozenset[str], skip: frozenset[str], made: Draft) -> str:
    code = language.detect("\n".join([message["content"] for message in made.record["messages"]]))
    if code in skip or (keep and code not in keep):
        raise Reject("lang", code)
    made.record["lang"] = code
    return code


def _contaminated(index: overlap.Index, record: Record) -> str | None:
    hit = next(index.hits(message["content"] for message in record["messages"]), None)
    return None if hit is None else str(hit)


def _moderation(moderator: Moderator, made: Draft) -> str | None:
    try:
        made.record["moderation"] = moderator.judge(made.record["messages"])
    except Failure as failure:  # told where the records are written in order, after those before this one
        made.failure = str(failure)
    return None


def _near(before: near.Near, made: Draft) -> None:
    if detail := before.before(made.sketch, made.record["id"]):
        raise Reject("dup_near", detail)


def _vicuna_read(made: Draft) -> None:
    made.record = vicuna.read(made.record)


def _vicuna_texts(engine: str, made: Draft) -> None:
    before = made.record["messages"]
    made.record["messages"] = vicuna.converted(before, engine)


def _vicuna_duplicates(seen: vicuna.Duplicates, made: Draft) -> None:
    seen.check(made.record)
