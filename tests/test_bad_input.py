"""The matrix of bad inputs: every row has a test, here or where its tool is tested; nothing is lost, nothing crashes."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from chats import jsonl, shared
from counting import assert_linear, counted, grows_in_proportion
from hostile import ANSWERS

from vtools.clean import clean_record

# What is wrong with the input, and the tests that hold it.
MATRIX = {
    "a line that is no JSON, trailing garbage, 42, null, []": [
        "test_a_line_that_is_not_json_stops_the_run_after_everything_before_it",
        "test_with_rejects_a_bad_line_is_saved_verbatim_and_the_run_goes_on",
        "test_a_json_value_that_is_no_object_is_named_as_such",
        "test_a_bad_line_is_saved_with_its_reason_and_the_rest_goes_on",
        "test_every_bad_line_of_a_file_is_saved_with_its_reason_and_every_good_one_goes_on",
    ],
    "blank line, CRLF, BOM at the start or in the middle": [
        "test_blank_lines_bom_crlf_and_a_missing_last_newline_are_fine",
        "test_arrays_give_exactly_their_elements_in_any_writing_and_any_chunks",
    ],
    "torn last line, torn array, cut .gz or .zst": [
        "test_a_torn_input_gives_every_whole_record_then_says_where_it_tore",
        "test_a_torn_array_gives_exactly_its_whole_elements_and_then_says_where_it_tore",
        "test_a_torn_gzip_array_gives_its_whole_records",
        "test_broken_input_ends_the_count_after_what_came_before_it_is_written",
    ],
    "invalid UTF-8": ["test_with_rejects_a_bad_line_is_saved_verbatim_and_the_run_goes_on"],
    "lone surrogate, NaN, Infinity, integers beyond 64 bits": [
        "test_lone_surrogates_nan_and_huge_integers_are_repaired_or_kept",
        "test_a_lone_surrogate_is_repaired_and_counted",
    ],
    "duplicate keys": ["test_of_two_keys_of_one_name_the_last_counts"],
    "a text that is null, missing, a number, a list of parts": [
        "test_what_cannot_be_read_says_where_and_why",
        "test_a_list_of_text_parts_is_one_text",
        "test_every_bad_line_of_a_file_is_saved_with_its_reason_and_every_good_one_goes_on",
    ],
    "missing id": ["test_a_missing_id_is_made_from_the_content"],
    "items, messages, conversation, a mapping": [
        "test_every_shape_becomes_the_same_messages",
        "test_every_shape_is_read_and_unknown_keys_pass_through",
        "test_every_bad_line_of_a_file_is_saved_with_its_reason_and_every_good_one_goes_on",
    ],
    "roles system, bing, bard, user, tool, none": [
        "test_a_conversation_runs_from_the_first_question_to_the_last_answer",
        "test_a_leading_system_message_is_kept",
        "test_a_record_is_rejected_for_its_reason",
    ],
    "begins with an answer, ends with a question, two of one role": [
        "test_a_conversation_runs_from_the_first_question_to_the_last_answer",
        "test_a_record_is_rejected_for_its_reason",
        "test_merging_joins_messages_of_a_role_with_a_blank_line",
    ],
    "no turns, one turn, empty answer": [
        "test_a_record_is_rejected_for_its_reason",
        "test_an_empty_answer_goes_with_its_question_and_the_rest_stays",
        "test_what_has_no_turns_is_rejected_by_split_and_counted_by_stats",
    ],
    "700 lists in each other, 20,000 open <b>": [
        "test_hostile_html_takes_linear_time_and_ends_without_a_crash",
        "test_hostile_html_does_not_break_the_reference_engine",
        "test_text_below_the_deepest_level_that_is_kept_is_not_lost",
        "test_a_hostile_answer_ends_and_its_cost_grows_with_its_length",
    ],
    "20,000 backticks, 1,000,000 <, 100,000 <li>": ["test_a_hostile_answer_ends_and_its_cost_grows_with_its_length"],
    "JSON nested 3,000 deep or without end": [
        "test_json_nested_too_deeply_is_a_bad_line_like_any_other",
        "test_the_work_grows_with_the_length_and_not_with_its_square",
    ],
    "a line of 100 MB": [
        "test_a_very_long_line_goes_through",
        "test_a_very_long_bad_line_is_saved_whole",
        "test_a_long_line_takes_steps_and_memory_by_its_length",
    ],
    "torn HTML": ["test_torn_html_keeps_what_is_there"],
    "tags, generics, indentation, 1 / 2 in a question": [
        "test_html_in_a_question_is_text",
        "test_a_text_that_is_no_html_is_kept_byte_for_byte_on_both_sides",
        "test_a_question_is_kept_byte_for_byte",
    ],
    "NUL, controls, ANSI, U+2028, zero-width and no-break spaces": [
        "test_control_characters_go_and_other_rare_ones_stay",
        "test_no_character_keeps_a_language_from_being_told",
        "test_a_terminal_shows_a_table_with_bars_that_no_name_in_the_data_can_disturb",
    ],
    "Markdown already": ["test_cleaning_twice_gives_the_same_record", "test_markdown_is_not_converted_again"],
    "</s> and <s> in a text": [
        "test_no_text_ever_becomes_a_control_token",
        "test_a_look_alike_of_a_control_token_drops_or_is_broken",
        "test_without_a_template_tokens_are_those_of_the_texts_with_names_of_control_tokens_as_text",
    ],
    "exact and near duplicates, the same id with other texts": [
        "test_the_same_texts_are_kept_once_whatever_their_ids_and_the_same_id_may_hold_other_texts",
        "test_a_near_duplicate_is_dropped_with_the_record_that_it_is_like",
        "test_exact_duplicates_and_duplicate_ids_are_counted_apart",
    ],
    "a pair longer than the limit": ["test_a_pair_longer_than_the_limit_loses_no_turn"],
    "closed pipe, full disk, SIGTERM, two runs at once": [
        "test_a_reader_that_goes_away_kills_the_filter_quietly",
        "test_a_full_disk_is_one_line_and_exit_1",
        "test_a_signal_ends_a_filter_by_that_signal_and_leaves_no_litter",
        "test_two_runs_on_one_output_do_not_mix",
        "test_stats_ends_by_the_same_rules_as_the_filters",
    ],
}


@pytest.mark.parametrize("row", MATRIX)
def test_every_row_of_the_matrix_has_its_tests(row):
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for name in MATRIX[row]:
        assert re.search(rf"^def {name}\(", tests, re.MULTILINE), name


def good(number: int) -> dict:
    return {"id": f"c{number}", **shared(f"Question {number} of many?", f"The answer to it, number {number}.")}


@pytest.fixture(params=["clean", "split", "stats"])
def tool(request, eot) -> list[str]:
    return [request.param, *(["--tokenizer", eot] if request.param == "split" else [])]


BAD = {
    b"no json": "bad_json",
    b'{"a": 1} and more': "bad_json",
    b'{"a": 1': "bad_json",
    b'{"a": "\xc3\x28"}': "bad_json",
    b'{"a": "line\nbreak"}'.replace(b"\n", b"\x0b"): "bad_json",
    b"'single'": "bad_json",
    b"42": "not_object",
    b"null": "not_object",
    b"[]": "not_object",
    b'[{"conversations": []}]': "not_object",
    b"{}": "bad_schema",
    b'{"conversations": null}': "bad_schema",
    b'{"conversations": {"0": {}}}': "bad_schema",
    b'{"conversations": ["text"]}': "bad_schema",
    b'{"conversations": [{"from": "human"}]}': "bad_schema",
    b'{"conversations": [{"from": "human", "value": null}]}': "bad_schema",
    b'{"conversations": [{"from": "human", "value": 5}]}': "bad_schema",
    b'{"conversations": [{"from": "human", "value": [{"type": "image"}]}]}': "media",
    b'{"mapping": {"a": {"message": null}}, "current_node": "a"}': "bad_schema",
    b'{"conversations": [{"from": "tool", "value": "x"}]}': "tool",
    b'{"conversations": [{"from": "helper", "value": "x"}]}': "unknown_role",
    b'{"conversations": [{"from": "", "value": "x"}]}': "unknown_role",
    b'{"conversations": [{"from": 7, "value": "x"}]}': "unknown_role",
    b'{"conversations": [{"value": "x"}]}': "unknown_role",
}


def test_every_bad_line_of_a_file_is_saved_with_its_reason_and_every_good_one_goes_on(vtools, tool, tmp_path):
    data = b"".join(jsonl(good(number)) + raw + b"\n" for number, raw in enumerate(BAD))
    done = vtools(*tool, "--rejects", "rejects.jsonl", stdin=data + jsonl(good(99)))
    assert done.returncode == 0
    assert "Traceback" not in done.errors
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_bytes().splitlines()]
    assert [(row["reason"], row["line"]) for row in rejects] == [
        (reason, 2 * number + 2) for number, reason in enumerate(BAD.values())
    ]
    for row, raw in zip(rejects, BAD, strict=True):
        assert row["stage"] == tool[0]
        assert base64.b64decode(row["raw_b64"]) == raw if "raw_b64" in row else row["record"] == json.loads(raw)
    ids = [f"c{number}" for number in [*range(len(BAD)), 99]]
    if tool[0] != "stats":
        assert [item["id"] for item in done.records] == ids
    else:
        assert done.records[0]["messages"] == 2 * len(ids)
        assert sum(done.records[0]["reasons"].values()) == len(BAD)


def test_of_two_keys_of_one_name_the_last_counts(vtools):
    raw = b'{"id": "a", "id": "b", "conversations": [], "conversations": ' + json.dumps(good(1)["conversations"]).encode() + b"}\n"  # fmt: skip
    (item,) = vtools("clean", stdin=raw).records
    assert (item["id"], len(item["messages"])) == ("b", 2)


def test_a_list_of_text_parts_is_one_text(vtools):
    parts = [{"type": "text", "text": "A question"}, "in", {"type": "text", "text": "parts?"}]
    (item,) = vtools("clean", stdin=jsonl(shared(parts, ["and", "its answer"]))).records
    assert [message["content"] for message in item["messages"]] == ["A question\nin\nparts?", "and\nits answer"]


def test_a_missing_id_is_made_from_the_content(vtools, tool):
    if tool[0] == "stats":
        pytest.skip("stats writes no records")
    record = good(1)
    del record["id"]
    one, two = vtools(*tool, stdin=jsonl(record)).records, vtools(*tool, stdin=jsonl({"id": None, **record})).records
    assert one == two
    assert re.fullmatch("[0-9a-f]{32}", one[0]["id"])


def test_what_has_no_turns_is_rejected_by_split_and_counted_by_stats(vtools, eot):
    data = jsonl(shared(), good(1))
    assert "2 in, 1 out, 1 rejected (empty 1)" in vtools("split", "--tokenizer", eot, stdin=data).errors
    assert vtools("stats", stdin=data).records[0]["user_turns"] == {"<=1": 2}


def test_a_pair_longer_than_the_limit_loses_no_turn(vtools, eot):
    given = shared("A question?", "An answer.", "And a long one, please?", "word " * 500, "Thanks!", "With pleasure.")
    done = vtools("split", "--tokenizer", eot, "--max-tokens", "48", stdin=jsonl(given))
    assert done.returncode == 0
    messages = [message["content"] for item in done.records for message in item["messages"]]
    assert len(done.records) == 3
    assert messages == [turn["value"] for turn in given["conversations"]]
    assert "overlong 1" in done.errors


@pytest.mark.parametrize("depth", [900, 3_000, 100_000])
@pytest.mark.parametrize("raw", ['{"a":[%s%s]}', '{"id":"deep","x":%s%s,"conversations":[]}', "%s%s"])
def test_json_nested_too_deeply_is_a_bad_line_like_any_other(vtools, tool, depth, raw):
    data = jsonl(good(1)) + (raw % ("[" * depth, "]" * depth)).encode() + b"\n" + jsonl(good(2))
    done = vtools(*tool, "--rejects", "rejects.jsonl", stdin=data)
    assert done.returncode == 0, done.errors
    assert "Traceback" not in done.errors
    if tool[0] != "stats":
        assert [item["id"] for item in done.records] == ["c1", "c2"]


@pytest.mark.parametrize("depth", [100, 300, 900, 1_100, 3_000])
def test_a_deep_value_beside_a_good_conversation_goes_through_or_is_saved(vtools, tool, tmp_path, depth):
    raw = jsonl(good(1)).strip()[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}\n"
    done = vtools(*tool, "--rejects", "rejects.jsonl", stdin=raw + jsonl(good(2)))
    assert done.returncode == 0, done.errors
    saved = len((tmp_path / "rejects.jsonl").read_bytes().splitlines())
    if tool[0] == "stats":
        assert done.records[0]["records"] + saved == 2
    else:
        assert len(done.stdout.splitlines()) + saved == 2
        assert all(b'"x":' + b"[" * depth in line for line in done.stdout.splitlines() if b'"c1"' in line)


@pytest.mark.parametrize("megabytes", [5, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("start", [b'{"conversations": "', b"[" * 20, b"x", b'{"a": ['])
def test_a_very_long_bad_line_is_saved_whole(vtools, tmp_path, megabytes, start):
    raw = b" " + start + b"many words, " * (megabytes * 87_000)
    done = vtools("clean", "--rejects", "rejects.jsonl", stdin=jsonl(good(1)) + raw + b"\n" + jsonl(good(2)))
    assert done.returncode == 0
    assert [item["id"] for item in done.records] == ["c1", "c2"]
    row = json.loads((tmp_path / "rejects.jsonl").read_bytes())
    assert base64.b64decode(row["raw_b64"]) == raw


TORN = "<div><p>First <b>bold</b> words</p><ul><li>one</li><li>two</li></ul><pre><code class='language-python'>a  = 1\nb = 2</code></pre><p>Last &amp; least</p></div>"  # fmt: skip


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_torn_html_keeps_what_is_there(vtools, engine):
    if engine == "fast":
        pytest.importorskip("turbohtml")
    cuts = range(len("<div><p>First"), len(TORN) + 1)
    done = vtools("clean", "--engine", engine, "--keep", "dup_exact", stdin=jsonl(*(shared("A question, please?", TORN[:cut]) for cut in cuts)))  # fmt: skip
    assert done.returncode == 0
    answers = [item["messages"][1]["content"] for item in done.records]
    assert len(answers) == len(cuts)
    words = ["First", "bold", "words", "one", "two", "a  = 1", "b = 2", "Last"]
    for cut, answer in zip(cuts, answers, strict=True):
        for word in words:
            if word in TORN[:cut]:
                assert word in answer, (TORN[:cut], answer)


QUESTIONS = [
    "Why is List<String> no List<Object>?",
    "<div>\n    <p>what does this do?</p>\n</div>",
    "    indented\n\tcode\n\n\n\nand 1 / 2 of it",
    "&lt;p&gt; &amp; &nbsp; stay",
    "a</s>b<s>c<|im_end|>",
    "x \u200b\ufeff\xa0\u2028y\r\n  ",
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_kept_byte_for_byte(vtools, eot, question):
    cleaned = vtools("clean", stdin=jsonl(shared(question, "The answer is long enough.")))
    assert cleaned.records[0]["messages"][0]["content"] == question
    split = vtools("split", "--tokenizer", eot, stdin=cleaned.stdout)
    assert split.records[0]["messages"][0]["content"] == question


def test_stats_ends_by_the_same_rules_as_the_filters(vtools, tmp_path):
    assert vtools("stats", "missing.jsonl").errors == "vtools stats: missing.jsonl: No such file or directory\n"
    (tmp_path / "in.jsonl").write_bytes(jsonl(good(1)))
    assert vtools("stats", "in.jsonl", "--rejects", "in.jsonl").returncode == 2
    assert (tmp_path / "in.jsonl").read_bytes() == jsonl(good(1))
    with open("/dev/full", "wb") as full:
        done = vtools("stats", "in.jsonl", stdout=full)
    assert (done.returncode, done.stderr) == (1, b"vtools stats: No space left on device\n")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_answer_ends_and_its_cost_grows_with_its_length(vtools, name):
    n, made = ANSWERS[name]
    (record,) = vtools("clean", "-q", stdin=jsonl(shared("A question, please?", made(2 * n)))).records
    assert "x" in record["messages"][1]["content"]
    assert_linear(lambda size: clean_record(shared("A question, please?", made(size))), n // 10)


@pytest.mark.parametrize("form", ["line", "array"])
def test_a_long_line_takes_steps_and_memory_by_its_length(tool, form, tmp_path):
    if tool[0] == "split":
        tool = [*tool, "--max-tokens", "100000000"]
    seen = []
    for megabytes in (2, 4, 8):
        data = jsonl(shared("A question, please?", 'A line of "words". ' * (megabytes * 52_000)))
        data = b"[" + data.strip() + b"]" if form == "array" else data
        (tmp_path / "in").write_bytes(data)  # a pipe would cut it up anew each time
        done, steps, memory = counted(tmp_path / "steps", *tool, "-q", tmp_path / "in")
        assert (done.returncode, done.stderr) == (0, b"")
        seen.append(steps)
        if tool[0] != "split":
            assert memory < 60_000_000 + 12 * len(data)
    assert grows_in_proportion(*seen), seen
