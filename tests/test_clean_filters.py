"""vtools clean's filters together: which reason counts, what is counted, and that cleaning twice is cleaning once."""

from __future__ import annotations

import json
from collections import Counter

from chats import jsonl, shared
from cleaning import QUESTION, ids, rejected, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtools.clean import clean_record, control_tokens, pii, steps, turns
from vtools.clean.choices import Choices
from vtools.clean.draft import Draft
from vtools.clean.html import convert, questions
from vtools.records.jsonl import Reject

# The steps as a whole


PASSED_OVER = st.sampled_from(["x", " ", "\n", "é", "1 / 2", "Copy", "&lt;p&gt;", "```", "\t", " words", " chars / ", "a < b", "<p>y</p>", "Copy1 chars / 2 words", "2 / 2 ", "\x1b[1m", "\x00"])  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.lists(PASSED_OVER, max_size=4).map("".join), min_size=1, max_size=4))
def test_a_text_that_the_html_step_passes_over_is_one_that_the_converter_leaves_alone(texts):
    roles = ["user", "assistant"] * 2
    made = Draft({"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]})
    next(step for step in steps.pure(Choices()) if step.name == "html").take(made)
    wanted = [
        convert.to_markdown(text, "auto") if place % 2 else convert.without_controls(text)
        for place, text in enumerate(texts)
    ]
    if made.converted:
        wanted[::2] = questions.unescaped(wanted[::2])
    assert [message["content"] for message in made.record["messages"]] == wanted


def test_the_first_reason_that_applies_is_the_one_that_is_given():
    zeros = "0" * 20
    everything = shared("1", f"<p>{zeros}</p>", plugins=["p"])
    assert rejected(everything)[0] == "plugin"
    assert rejected({**everything, "plugins": None})[0] == "rep_digits"
    assert rejected(shared("1", "<p>000000000</p>"))[0] == "too_short"
    assert rejected(shared("a question", ""), drop_refusals=True)[0] == "empty"


def test_stats_tell_reasons_redactions_and_languages(tmp_path):
    german = shared(
        "Was ist die Hauptstadt von Frankreich, und warum ist sie das?", "Das ist Paris, seit langer Zeit.", id="de"
    )
    english = shared(
        "What is the capital of France? Write to jo@corp.io or ann@corp.io",
        "It is Paris, as it has long been.",
        id="en",
    )
    done = run(
        "--skip-lang",
        "de",
        "--pii",
        "redact",
        "--stats",
        tmp_path / "s",
        stdin=jsonl(german, english, shared("1", "2")),
    )
    assert ids(done) == ["en"]
    stats = json.loads((tmp_path / "s").read_bytes())
    assert (stats["in"], stats["out"], stats["rejected"]) == (3, 1, 2)
    assert stats["reasons"] == {"lang": 1, "too_short": 1}
    assert stats["languages"] == {"de": 1, "en": 1}
    assert stats["redacted"] == {"email": 2}


# Everything together

PIECES = st.sampled_from(
    [
        "a@corp.io", "@", "415-555-2671", "4111 1111 1111 1111", "4111111111111111", "sk-aB3dE5gH7jK9mN1pQ3sT5vW7", "91.198.174.192", "+49 30 901820",
        "</s>", "<s>", "<|im_end|>", "<|", "|>", "[INST]", "[", "<p>", "</p>", "<b>", "&lt;/s&gt;", "&#60;", "00000000000000000000", "0", "1", "\n1. ", "2", "- ",
        "openai", "Open", "AI", "I cannot fulfill this request", "word", "der Fluss und die Stadt", " ", "\n", "-", ".", "x", "é", "这条河", "\u200b", "\x00",
        "Compose an engaging travel blog post", "about a recent trip to Hawaii", "Copy1 chars / 2 words", "2 / 2\n\n", "```\n",
    ]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(PIECES | st.text("0123456789.+-( )@ab_", max_size=20), max_size=6).map("".join))
def test_a_text_that_is_passed_over_holds_no_personal_data(text):
    found: Counter[str] = Counter()
    pii.redacted(text, pii.RULES, found)
    assert found.keys() <= {rule[0] for rule in pii.possible(turns.shape([{"role": "user", "content": text}]))}


MESSAGES = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "gpt", "human", "system"]), "value": st.lists(PIECES, max_size=8).map("".join)}),
    max_size=6,
)  # fmt: skip
OPTIONS = {
    "--merge-same-role": [], "--blocked-words": ["words"], "--drop-refusals": [], "--keep-lang": ["en,un", "de,en"], "--skip-lang": ["zh"],
    "--pii": ["redact", "drop", "tag"], "--special-tokens": ["drop", "break"], "--dedupe": ["longest"], "--near-duplicates": ["0.6", "0.9"],
    "--decontaminate": ["questions"], "--decontaminate-ngram": ["5"], "--keep": ["rep_digits", "too_short", "plugin"], "--format": ["sharegpt"],
}  # fmt: skip
CHOSEN = st.lists(st.sampled_from(list(OPTIONS)), unique=True, max_size=6).flatmap(
    lambda names: st.tuples(
        *(st.tuples(st.just(name), *([st.sampled_from(OPTIONS[name])] if OPTIONS[name] else [])) for name in names)
    )
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, st.booleans(), st.sampled_from(["keep", "break"]), st.sampled_from([None, "redact", "tag"]))
def test_cleaning_a_record_twice_with_the_same_choices_changes_nothing(turns, merge, special_tokens, pii):
    chosen = {"merge_same_role": merge, "special_tokens": special_tokens, "pii": pii, "skip_lang": "zh"}
    try:
        once = clean_record({"conversations": turns}, **chosen)
    except Reject:
        return
    assert clean_record(json.loads(json.dumps(once)), **chosen) == once
    if special_tokens == "break":
        assert not any(control_tokens.found(message["content"]) for message in once["messages"])


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MESSAGES, max_size=25), CHOSEN)
def test_with_any_options_nothing_vanishes_twice_is_once_and_two_processes_write_the_same_bytes(
    tmp_path_factory, conversations, chosen
):
    folder = tmp_path_factory.mktemp("clean")
    (folder / "words").write_text("openai\nopen ai\n")
    (folder / "questions").write_bytes(jsonl({"id": 1, "turns": [QUESTION]}))
    options = [word for option in chosen for word in option]
    data = jsonl(*({"conversations": turns} for turns in [*conversations, *conversations[:5]]))
    one = run(*options, "--rejects", "r1", "--stats", "s1", stdin=data, cwd=folder)
    two = run(
        *options, "--rejects", "r2", "--stats", "s2", "-j", "2", stdin=data, cwd=folder, env={"PYTHONHASHSEED": "7"}
    )
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert one.stdout == two.stdout
    assert (folder / "r1").read_bytes() == (folder / "r2").read_bytes()
    assert (folder / "s1").read_bytes() == (folder / "s2").read_bytes()
    stats = json.loads((folder / "s1").read_bytes())
    assert stats["in"] == len(data.splitlines()) == stats["out"] + stats["rejected"]
    assert stats["out"] == len(one.stdout.splitlines())
    assert stats["rejected"] == len((folder / "r1").read_bytes().splitlines())
    again = run(*options, "--rejects", "r3", stdin=one.stdout, cwd=folder)
    assert again.stdout == one.stdout
