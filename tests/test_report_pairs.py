"""`vtools report --pairs`: judgments become preference records that the other tools read."""

from __future__ import annotations

import json

from judgments import answered, in_both_orders, judged, written


def preferences(vtools, tmp_path, rows: list[dict], answers: dict[str, list[dict]]) -> tuple[list[dict], str]:
    files = [word for name, each in answers.items() for word in ("--answers", written(tmp_path, f"{name}.jsonl", each))]
    done = vtools("report", written(tmp_path, "judgments.jsonl", rows), *files, "--pairs", "pairs.jsonl")
    assert done.returncode == 0, done.errors
    return [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()], done.errors


def both(*ids: str) -> dict[str, list[dict]]:
    return {model: [answered(id, model, f"{model} on {id}") for id in ids] for model in ("base", "tuned")}


def test_the_answer_that_won_ends_the_conversation_and_the_other_stays_beside_it(vtools, tmp_path):
    rows = in_both_orders("1", [5, 9], category="math") + in_both_orders("2", [9, 5])
    (first, second), said = preferences(vtools, tmp_path, rows, both("1", "2"))
    assert first["messages"] == [
        {"role": "user", "content": "What is 1?"},
        {"role": "assistant", "content": "tuned on 1"},
    ]
    assert first["rejected"] == [{"role": "assistant", "content": "base on 1"}]
    assert (first["id"], first["category"], first["model"], first["rejected_model"]) == (
        "1:tuned>base",
        "math",
        "tuned",
        "base",
    )
    assert first["judges"] == ["judge-1"] and first["unanimous"] is True and first["vtools"][0]["op"] == "report"
    assert second["messages"][-1]["content"] == "base on 2"
    assert "2 preferences in pairs.jsonl" in said


def test_ties_unread_verdicts_and_unknown_answers_are_left_out_and_counted(vtools, tmp_path):
    flipped = [judged("2", "ab", [5, 9]), judged("2", "ba", [9, 5])]
    rows = in_both_orders("1", [5, 9]) + flipped + in_both_orders("3", None) + in_both_orders("4", [5, 9])
    records, said = preferences(vtools, tmp_path, rows, both("1", "2", "3"))
    assert [record["id"] for record in records] == ["1:tuned>base"]
    assert (
        "1 preferences in pairs.jsonl; 1 left out: ties; 1 left out: no verdict; 1 left out: not all texts are known"
        in said
    )


def test_of_several_turns_the_rejected_ones_begin_where_the_answers_part(vtools, tmp_path):
    answers = {
        model: [answered("1", model, "Same.", f"{model} again", question=["Q1", "Q2"])] for model in ("base", "tuned")
    }
    (record,), _ = preferences(vtools, tmp_path, in_both_orders("1", [5, 9]), answers)
    assert [message["content"] for message in record["messages"]] == ["Q1", "Same.", "Q2", "tuned again"]
    assert record["rejected"] == [{"role": "assistant", "content": "base again"}]


def test_the_other_tools_read_the_records_and_keep_what_was_rejected(vtools, tmp_path):
    records, _ = preferences(vtools, tmp_path, in_both_orders("1", [5, 9]), both("1"))
    done = vtools("clean", "pairs.jsonl")
    assert done.returncode == 0, done.errors
    (cleaned,) = done.records
    assert (cleaned["messages"], cleaned["rejected"]) == (records[0]["messages"], records[0]["rejected"])


def test_without_the_answers_there_are_no_pairs_and_the_error_says_what_to_name(vtools):
    done = vtools("report", "--pairs", "pairs.jsonl", stdin=json.dumps(judged("1", "ab", [5, 9])))
    assert done.returncode == 2 and "--answers FILE" in done.errors
