"""vtools clean: which lists, digits, notices and plug-ins are broken data, and which are not."""

from __future__ import annotations

import json

import pytest
from chats import chat, jsonl, shared
from cleaning import ENGINES, GOOD, ids, rejected, run

from vtools.clean import clean_record

ASKED = "Tell me about it, please."


def reason(answer: str, **chosen) -> str | None:
    found = rejected(shared(ASKED, answer), **chosen)
    return found and found[0]


# Lists


@pytest.mark.parametrize(
    "answer",
    [
        "Do this:\n1. Open it\n1. Read it\n1. Close it",
        "1. Open it\n1. Read it",
        "Do this:\r\n1. Open it\r\n\r\n1. Read it",
        "Her life:\n1. Born in 2012\n1. At school in 2022\n1. Famous",
        "Do this:\n1. Open it.\n\n   It has 2 doors.\n\n1. Go in",
        "Do this:\n1. Open it, and\n   - knock\n   - wait\n1. Go in",
        "Do this:\n1. Install it:\n```\npip install 2\n2. no item\n```\n1. Run it",
        "Tips:\n1. Sleep:\n* eight hours\n* in the dark\n\n1. Eat:\n* fruit",
        "Tips:\n1. Sleep:\nIt keeps you awake later.\n\n1. Eat:\nIt is good for you.",
        "Tips:\n1. Sleep\n\nIt keeps you awake later.\n\nTry it.\n\n1. Eat\n\nIt is good for you.",
    ],
)
def test_a_list_that_restarts_after_its_first_item_is_broken_whatever_its_items_hold(answer):
    assert reason(answer) == "wrong_list"
    assert reason(answer, keep=frozenset(["wrong_list"])) is None


@pytest.mark.parametrize(
    "answer",
    [
        "Lazy numbering works:\n\n```markdown\n1. one\n1. next\n1. last\n```\n",
        "Lazy numbering works:\n\n~~~\n1. one\n1. next",
        "Lazy numbering works:\n\n1. Write:\n   ```\n   1. one\n1. next\n   ```\n",
        "Monday\n1. milk\n\nTuesday\n1. bread\n\nWednesday\n1. eggs",
        "Monday\n1. milk\nTuesday\n1. bread",
        "## Monday\n1. milk\n## Tuesday\n1. bread",
        "On Monday we buy:\n\n1. milk\n\nOn the day after that:\n\n1. bread",
        "**Monday**\n\n1. milk\n\nIt is for the cat.\n\n**Tuesday**\n\n1. bread",
        "Two plans:\n1. one\n2. two\n\n1. first\n2. second",
        "Two plans:\n1. one\n2. two\n1. first",
        "Nested:\n\n- a\n  1. b\n- c\n  1. d",
        "It grew by 1. 5 in one year\n1. That is all",
    ],
)
def test_numbers_in_code_and_lists_with_something_between_them_are_no_broken_list(answer):
    assert reason(answer) is None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_list_that_was_converted_from_html_is_never_called_broken_and_stays_in_a_second_run(engine):
    page = "<p>Two lists of one item:</p><ol><li>milk</li></ol><ol><li>bread</li></ol>"
    once = run("--engine", engine, stdin=jsonl(shared(ASKED, page, id="a")))
    assert ids(once) == ["a"]
    assert once.records[0]["messages"][1]["content"].endswith("1. milk\n\n1. bread")
    assert run("--engine", engine, stdin=once.stdout).stdout == once.stdout
    by_hand = {"messages": once.records[0]["messages"]}
    assert rejected(by_hand)[0] == "wrong_list"
    assert rejected({**by_hand, "vtools": [{"op": "clean", "v": "0"}]})[0] == "wrong_list"


def test_converted_answers_are_counted_in_the_closing_line_and_the_stats(tmp_path):
    page, second = "<p>An answer of some length.</p>", "<ul><li>another one</li></ul>"
    data = jsonl(shared(ASKED, page, "And?", "no HTML here", "And?", second), shared("1", "<p>2</p>"), shared(*GOOD))
    done = run("--stats", tmp_path / "s", stdin=data)
    assert json.loads((tmp_path / "s").read_bytes())["html_converted"] == 2
    assert ", html_converted 2" in done.errors
    assert "html_converted" not in run(stdin=jsonl(shared(*GOOD))).errors
    assert "html_converted" not in run("--keep", "html", stdin=data).errors


# Digits


@pytest.mark.parametrize(
    "answer",
    [
        "Guid.Empty is 00000000-0000-0000-0000-000000000000 there.",
        "One third is 0.333333333333 and so on.",
        "There are 1000000000000000000 wei in one ether.",
        "The mask is:\n\n```\n" + "0" * 64 + "\n```\n",
        "The mask is `" + "1" * 32 + "`, or ``" + "1" * 32 + "``.",
        "9" * 19,
    ],
)
def test_zeros_of_a_guid_thirds_and_digits_in_code_are_no_broken_text(answer):
    assert reason(answer) is None


@pytest.mark.parametrize("answer", ["It is 3." + "3" * 20, "0" * 5000, "`x`" + "7" * 20 + "\n```\n1\n```"])
def test_twenty_equal_digits_in_a_row_are_a_broken_text(answer):
    assert reason(answer) == "rep_digits"
    assert rejected(shared(answer, GOOD[1]))[0] == "rep_digits"
    assert reason(answer, preset="vicuna") is None  # FastChat's test is a program of its own, as is that for lists


@pytest.mark.parametrize("digits, found", [(20, "rep_digits"), (19, None)])
def test_a_run_of_digits_is_found_wherever_it_begins(digits, found):
    assert {reason("." * before + "7" * digits + " is the result.") for before in range(20)} == {found}


# Notices of the page

NOTICES = [
    "Too many requests in 1 hour. Try again later.",
    "Too many requests, please slow down",
    "Only one message at a time. Please allow any other responses to complete before sending another message, or wait one minute.",
    "Something went wrong. If this issue persists please contact us through our help center at help.openai.com.",
    "An error occurred. If this issue persists, please contact us through our help center at help.openai.com.",
    "An error occurred. Either the engine you requested does not exist or there was another issue processing your request. If this issue persists please contact us through our help center at help.openai.com.",
    "Something went wrong while generating the response. If this issue persists please contact us through our help center at help.openai.com.",
    "Hmm...something seems to have gone wrong. Maybe try me again in a little bit.",
    "Hmm\u2026something seems to have gone wrong.",
    "The server had an error while processing your request. Sorry about that!",
    "The server had an error processing your request. Sorry about that! You can retry your request, or contact us through our help center at help.openai.com if you keep seeing this error. (Please include the request ID 4f1d-9ab in your message.)",
    "The server is currently overloaded with other requests. Sorry about that! You can retry your request, or contact us through our help center at help.openai.com if the error persists.",
    "That model is currently overloaded with other requests. You can retry your request, or contact us through our help center at help.openai.com if the error persists. (Please include the request ID 4f1d9ab in your message.)",
    "The server experienced an error while processing your request",
    "You've reached our limit of messages per hour. Please try again later.",
    "You\u2019ve reached our limits of messages per 24 hours. Please try again later.",
    "You've reached the current usage cap for GPT-4. You can continue with the default model now, or try again after 3:12 PM. Learn more",
    "You have sent too many messages to the model. Please try again later.",
    "Error in body stream",
    "Error in message stream.",
    "There was an error generating a response",
    "This content may violate our content policy. If you believe this to be in error, please submit your feedback \u2014 your input will aid our research in this area.",
    "This prompt may violate our content policy.",
    "Our systems are a bit busy at the moment, please take a break and try again soon.",
    "We're experiencing exceptionally high demand. Please hang tight as we work on scaling our systems.",
    "Network error",
]  # fmt: skip


@pytest.mark.parametrize("notice", NOTICES)
def test_a_notice_of_the_page_is_no_answer(notice):
    for answer in (notice, f"!{notice}", f"\n\u200b\n\n{notice}\n", f"<p>{notice}</p>", f"{notice}\n\nNetwork error"):
        assert reason(answer) == "blocked_response"
    found = rejected(shared(*GOOD, "And then?", notice))
    assert found == ("blocked_response", f"messages[3]: {notice}")
    assert rejected(shared(notice, GOOD[1])) is None
    assert reason(f"The page says this when it is busy:\n\n{notice}") is None
    assert reason(f"{notice} So it said, and we waited until it was over.") is None


def test_under_the_preset_the_notices_are_the_two_that_fastchat_knows():
    told = [notice for notice in NOTICES if reason(notice, preset="vicuna") == "blocked_response"]
    assert told == NOTICES[:1]


@pytest.mark.parametrize(
    "answer",
    ["Something went wrong in line 3.", "Internal Server Error", "Network errors are rare.", "An error occurred."],
)
def test_a_short_answer_about_an_error_is_an_answer(answer):
    assert reason(answer) is None


# Plug-ins


@pytest.mark.parametrize("plugins", [None, [], {}, "", False])
def test_an_empty_list_of_plugins_is_no_plugin_but_for_fastchat_any_value_is_one(plugins):
    record = shared(*GOOD, id="a", plugins=plugins)
    assert clean_record(record)["plugins"] == plugins
    assert bool(ids(run("--preset", "vicuna", stdin=jsonl(record)))) == (plugins is None)


# Preference pairs


@pytest.mark.parametrize(
    ("answer", "chosen", "why"),
    [
        ("Error in body stream", {}, ("blocked_response", "rejected[0]: Error in body stream")),
        ("Do:\n1. one\n1. two", {}, ("wrong_list", "rejected[0]: a list restarts at 1")),
        ("It ends in </s>", {"special_tokens": "drop"}, ("special_token", "rejected[0]: </s>")),
        ("Mail jo@corp.io", {"pii": "drop"}, ("pii", "email 1")),
        (" \u200b", {}, ("empty", "the rejected answer")),
        ("<p> </p>", {}, ("empty", "the rejected answer")),
        ("x", {}, None),
        ("0" * 30, {}, None),
        ("I can't help with that request.", {"drop_refusals": True}, None),
        ("Das ist ein längerer Text in einer anderen Sprache.", {"keep_lang": "en"}, None),
    ],
)
def test_a_rejected_answer_is_judged_for_what_breaks_it_and_not_for_being_the_worse_one(answer, chosen, why):
    record = {"messages": chat(*GOOD), "rejected": [{"role": "assistant", "content": answer}]}
    assert rejected(record, **chosen) == why


@pytest.mark.parametrize("preset", [None, "vicuna"])
def test_the_texts_of_a_rejected_answer_are_cleaned_and_counted_like_the_others(preset):
    worse = [{"role": "assistant", "content": "<p>Mail <b>jo@corp.io</b></p>"}]
    record = {"messages": chat(GOOD[0], "<p>Mail ann@corp.io</p>"), "rejected": worse}
    once = clean_record(record, pii="redact", preset=preset)
    assert once["rejected"] == [{"role": "assistant", "content": "Mail **[EMAIL]**"}]
    assert clean_record(once, pii="redact", preset=preset) == once
    assert clean_record(record, pii="tag")["pii"] == {"email": 2}
    broken = clean_record(
        {**record, "rejected": [{"role": "assistant", "content": "\x00a </s>"}]}, special_tokens="break"
    )
    assert broken["rejected"][0]["content"] == "a < /s>"


def test_the_counts_hold_what_was_found_in_a_rejected_answer(tmp_path):
    worse = [{"role": "assistant", "content": "<p>Mail <b>jo@corp.io</b></p>"}]
    record = {"messages": chat(GOOD[0], "<p>Mail ann@corp.io</p>"), "rejected": worse}
    run("--pii", "redact", "--stats", tmp_path / "s", stdin=jsonl(record))
    stats = json.loads((tmp_path / "s").read_bytes())
    assert (stats["html_converted"], stats["redacted"]) == (2, {"email": 2})


@pytest.mark.parametrize("preset", [None, "vicuna"])
@pytest.mark.parametrize(
    "texts", [(*GOOD, "A question?", ""), (*GOOD, "", "An answer of some length."), (*GOOD, "Left open?")]
)
def test_a_pair_whose_chosen_answer_is_lost_is_rejected_whole(texts, preset):
    record = {"messages": chat(*texts), "rejected": [{"role": "assistant", "content": "The worse answer."}]}
    assert rejected(record, preset=preset)[0] == "empty"
    assert rejected({"messages": chat(*texts)}, preset=preset) is None


def test_a_key_named_rejected_that_is_no_answer_passes_through():
    for value in (False, "no", 3, ["x"], [{"a": 1}]):
        assert clean_record({"messages": chat(*GOOD), "rejected": value})["rejected"] == value
    for value in (None, []):
        assert "rejected" not in clean_record({"messages": chat(*GOOD), "rejected": value})
