"""vtools clean: turns in order, a reason for every reject, and the rule that nothing vanishes."""

import base64
import functools
import gzip
import itertools
import json
import os

import pytest
import running
from chats import jsonl, shared

from vtools.clean import clean_record, filters
from vtools.records.jsonl import Reject

pytest.importorskip("turbohtml")
from cleaning import cleaned, run

# Roles and order


def roles(record) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in clean_record(record)["messages"]]


def turns(*pairs) -> dict:
    return {"conversations": [{"from": role, "value": text} for role, text in pairs]}


def test_a_conversation_runs_from_the_first_question_to_the_last_answer():
    given = turns(
        ("gpt", "hello there"),
        ("chatgpt", "again"),
        ("human", "a question"),
        ("bing", "an answer"),
        ("user", "left open"),
    )
    assert roles(given) == [("user", "a question"), ("assistant", "an answer")]


def test_a_leading_system_message_is_kept():
    given = turns(("system", "be kind"), ("gpt", "hi"), ("human", "a question"), ("gpt", "an answer"))
    assert [role for role, _ in roles(given)] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    "blank", ["", " \n\t", "\u200b", "\ufeff \u200b", "<p></p>", "<div><p>\u200b</p>&nbsp;</div>", "\x00"]
)
def test_an_empty_answer_goes_with_its_question_and_the_rest_stays(blank):
    assert cleaned("first question", "first answer", "second", blank, "third", "answer") == [
        "first question",
        "first answer",
        "third",
        "answer",
    ]
    with pytest.raises(Reject) as caught:
        cleaned("only question here", blank)
    assert caught.value.reason == "empty"


def test_an_answer_that_begins_with_a_zero_width_space_is_no_empty_answer():
    assert cleaned("a question there", "\u200banswer")[1] == "\u200banswer"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversations": []}, "empty"),
        (turns(("human", "no answer at all")), "empty"),
        (turns(("gpt", "no question at all")), "empty"),
        (turns(("human", "one"), ("human", "two"), ("gpt", "answered")), "role_order"),
        (turns(("human", "one"), ("gpt", "an answer"), ("gpt", "another")), "role_order"),
        (turns(("human", "one"), ("system", "now be kind"), ("gpt", "an answer")), "role_order"),
        (turns(("human", "one"), ("tool", "x"), ("gpt", "an answer")), "tool"),
        (turns(("human", "one"), ("helper", "x"), ("gpt", "an answer")), "unknown_role"),
        (turns(("human", "123456789"), ("gpt", "012345")), "too_short"),
        (turns(("human", None), ("gpt", "an answer")), "bad_schema"),
        ({"text": "no conversation"}, "bad_schema"),
        (shared("use a plug-in, please", "done, it says", plugins=[{"id": "p"}]), "plugin"),
        (shared("a long question", "!Too many requests in 1 hour. Try again later."), "blocked_response"),
        (shared("count to a lot", "here: 1 00000000000000000000 2"), "rep_digits"),
        (shared("list things, please", "Sure:\n1. one\n1. next\n1. last"), "wrong_list"),
    ],
)
def test_a_record_is_rejected_for_its_reason(record, reason):
    with pytest.raises(Reject) as caught:
        clean_record(record)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "record",
    [
        shared("12345678", "87654321", plugins=None),
        shared("Why does it say this?", "It says: Too many requests in 1 hour. Try again later."),
        shared("count to a lot", "00000000 11111111"),
        shared("list things, please", "Sure:\n1. one\n2. next\n\nand\n1. first\n2. second"),
        shared("\n1. a\n1. b\n1. c", "a question's list is the user's own"),
    ],
)
def test_a_record_at_the_near_side_of_a_rule_is_kept(record):
    assert clean_record(record)


def test_every_shape_is_read_and_unknown_keys_pass_through():
    pair = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
    for record in (
        {"messages": pair},
        {"items": [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "<p>an answer</p>"}]},
        {"instruction": "a question", "input": "", "output": "an answer"},
        {"prompt": "a question", "completion": "an answer"},
    ):
        out = clean_record({"model": "m", **record})
        assert out["messages"] == pair
        assert out["model"] == "m"
        assert out["vtools"][0]["op"] == "clean"


# The command


def test_the_same_texts_are_kept_once_whatever_their_ids_and_the_same_id_may_hold_other_texts():
    first, other = shared("a question?", "<p>an answer</p>", id="x"), shared("a question?", "another answer", id="x")
    done = run(stdin=jsonl(first, shared("a question?", "an answer\n", id="y"), other))
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["x", "x"]
    assert b"3 in, 2 out, 1 rejected (dup_exact 1)" in done.stderr


def test_a_filter_is_switched_off_by_its_name():
    record = shared("use a plug-in, please", "00000000000000000000\n1. a\n1. b\n1. ", plugins=["p"])
    names = [name for name in ("plugin", "rep_digits", "wrong_list", "dup_exact")]
    done = run(*itertools.chain(*(("--keep", name) for name in names)), stdin=jsonl(record, record))
    assert len(done.stdout.splitlines()) == 2
    assert run("--keep", "role_order", stdin=jsonl(record)).returncode == 2


def test_merging_joins_messages_of_a_role_with_a_blank_line():
    given = turns(("human", "one"), ("human", "two"), ("gpt", "<p>first</p>"), ("gpt", ""), ("gpt", "second"))
    done = run("--merge-same-role", stdin=jsonl(given))
    assert [message["content"] for message in json.loads(done.stdout)["messages"]] == ["one\n\ntwo", "first\n\nsecond"]


def test_sharegpt_format_writes_the_shape_that_fastchat_reads():
    done = run("--format", "sharegpt", stdin=jsonl(turns(("user", "a question"), ("bing", "<p>an answer</p>"))))
    assert json.loads(done.stdout)["conversations"] == [
        {"from": "human", "value": "a question"},
        {"from": "gpt", "value": "an answer"},
    ]


GOOD = shared("a good question", "<p>a good answer</p>", id="good")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"not json", "bad_json"),
        (b'{"a": 1} trailing', "bad_json"),
        (b'{"a": "\xff"}', "bad_json"),
        (b"42", "not_object"),
        (b"null", "not_object"),
        (b"{}", "bad_schema"),
        (b'{"conversations": 3}', "bad_schema"),
        (b'{"conversations": [{"from": "human", "value": 3}]}', "bad_schema"),
        (b'{"conversations": [{"from": "", "value": "x"}]}', "unknown_role"),
    ],
)
def test_a_bad_line_is_saved_with_its_reason_and_the_rest_goes_on(bad, reason, tmp_path):
    rejects = tmp_path / "rejects"
    done = run(
        "--rejects",
        str(rejects),
        stdin=jsonl(GOOD) + bad + b"\r\n\n\xef\xbb\xbf" + jsonl(shared("after it", "all is well here")),
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    (row,) = map(json.loads, rejects.read_bytes().splitlines())
    assert (row["reason"], row["line"], row["stage"]) == (reason, 2, "clean")
    if "raw_b64" in row:
        assert base64.b64decode(row["raw_b64"]).strip() == bad
    else:
        assert row["record"] == json.loads(bad)
    assert b"Traceback" not in done.stderr


def test_a_lone_surrogate_is_repaired_and_counted():
    done = run(
        stdin=b'{"conversations":[{"from":"human","value":"a \\ud83d question"},{"from":"gpt","value":"<p>an \\ud83d answer</p>"}]}\n'
    )
    assert "an \ufffd answer" in done.stdout.decode()
    assert b"repaired 1" in done.stderr


def test_a_torn_gzip_array_gives_its_whole_records(tmp_path):
    packed = gzip.compress(
        json.dumps([shared(f"question {n}", f"<p>answer {os.urandom(99).hex()}</p>") for n in range(99)]).encode()
    )
    file = tmp_path / "torn.json.gz"
    file.write_bytes(packed[: len(packed) // 2])
    done = run(str(file), "--rejects", str(tmp_path / "rejects"))
    assert done.returncode == 0
    assert 20 < len(done.stdout.splitlines()) < 99
    assert json.loads((tmp_path / "rejects").read_bytes())["reason"] == "torn_input"
    assert run(str(file)).returncode == 1


def test_control_characters_go_and_other_rare_ones_stay():
    text = "a\x00b\x1b[1m\tc\u2028d\u200be\xa0f\r\n"
    assert cleaned(text, text + "long enough") == [
        "ab[1m\tc\u2028d\u200be\xa0f\r\n",
        "ab[1m\tc\u2028d\u200be\xa0f\r\nlong enough",
    ]


def test_a_key_of_the_duplicate_filter_costs_at_most_100_bytes():
    """Measured in a process of its own, as peak memory does not fall."""
    code = (
        "from vtools.clean.duplicates import Exact\n"
        "from vtools.records.conversation import text_key\n"
        f"seen, peak = Exact(), lambda: {running.PEAK}\n"
        "seen.before(text_key([]), ''); start = peak()\n"
        "for n in range(1_000_000): seen.before(text_key([{'role': 'user', 'content': str(n)}]), str(n))\n"
        "print((peak() - start) / 1_000_000)\n"
    )
    assert float(running.python(code).stdout) < 100


def test_nothing_heavy_is_imported_before_the_first_html_answer():
    code = (
        "import sys\n"
        "from vtools.clean import clean_record\n"
        "def heavy(): return sorted({'bs4', 'markdownify', 'turbohtml', 'torch', 'rich', 'numpy'} & set(sys.modules))\n"
        "pair = lambda text: {'prompt': 'a question', 'completion': text}\n"
        "clean_record(pair('# Markdown\\n\\nwith a < b and <b>')); print(heavy())\n"
        "clean_record(pair('<p>HTML it is</p>')); print(heavy())\n"
    )
    assert running.python(code).stdout.splitlines()[:2] == [b"[]", b"['turbohtml']"]


def test_the_rate_limit_notice_alone_is_blocked_and_a_talk_about_it_is_not():
    record = functools.partial(shared, "please answer me")
    for notice in (
        "Too many requests in 1 hour. Try again later.",
        "<p>Too many requests in 1 hour. Try again later.</p>",
    ):
        with pytest.raises(Reject, match="blocked_response"):
            clean_record(record(notice))
    assert (
        filters.blocked_response(
            clean_record(record("Too many requests in 1 hour. Try again later. So said the page."))
        )
        is None
    )
