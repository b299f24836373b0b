"""split, the command: ids, hold-out sides that never mix, the same bytes for any number of processes."""

from __future__ import annotations

import json
import random
import re

import pytest
from chats import chat
from running import peak, python
from splitting import saved

from vtools.records import conversation
from vtools.split import segments


def test_ids_say_where_a_segment_starts(vtools, eot):
    record = {"id": "abc", "messages": chat(*["word " * 40] * 6)}
    done = vtools("split", "--tokenizer", eot, "--max-tokens", 200, stdin=json.dumps(record))
    assert [part["id"] for part in done.records] == ["abc_0", "abc_2", "abc_4"]
    assert done.records[1]["segment"]["of"] == "abc"
    assert (done.records[1]["segment"]["index"], done.records[1]["segment"]["count"]) == (1, 3)


def test_a_conversation_that_fits_is_unchanged(vtools, eot):
    record = {"id": "abc", "messages": chat("Hi", "Hello"), "note": 1}
    (part,) = vtools("split", "--tokenizer", eot, stdin=json.dumps(record)).records
    assert part.pop("vtools")[0]["op"] == "split"
    assert part == record


def test_a_pair_too_long_by_itself_is_kept_and_counted(vtools, eot):
    records = [
        {"id": "a", "messages": chat("word " * 200, "word " * 200)},
        {"id": "b", "messages": chat("Hi", "Hello")},
    ]
    done = vtools("split", "--tokenizer", eot, "--max-tokens", 100, stdin="\n".join(map(json.dumps, records)))
    assert [part["id"] for part in done.records] == ["a", "b"]
    assert "overlong 1" in done.errors


def test_an_empty_answer_is_rejected_by_its_place(vtools, eot, tmp_path):
    record = {"id": "a", "messages": chat("q", "a", "q2", "")}
    done = vtools("split", "--tokenizer", eot, "--rejects", "r", stdin=json.dumps(record))
    (reject,) = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert (reject["reason"], reject["id"]) == ("template_error", "a")
    assert "messages[3]" in reject["detail"]
    assert done.returncode == 0


def test_sharegpt_format_writes_the_same_segments_in_the_shape_that_fastchat_reads(vtools, eot):
    data = json.dumps({"id": "a", "messages": chat(*["word " * 30] * 6)})
    written = [
        [json.loads(line) for line in done.stdout.splitlines()]
        for shape in ("messages", "sharegpt")
        for done in [vtools("split", "--tokenizer", eot, "--max-tokens", 120, "--format", shape, stdin=data)]
    ]
    assert len(written[0]) > 1
    assert written[1] == [conversation.to_sharegpt(record) for record in written[0]]


HOLD_OUT = ["--max-tokens", 120, "--hold-out", "20%", "--hold-out-file", "held.jsonl", "-o", "train.jsonl"]


def hold_out(vtools, eot, data, tmp_path, *more):
    done = vtools("split", "--tokenizer", eot, *HOLD_OUT, *more, stdin=data)
    assert done.returncode == 0, done.errors
    return [
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("train.jsonl", "held.jsonl")
    ]


def test_no_conversation_is_on_both_sides_and_a_rerun_gives_the_same_sides(vtools, eot, tmp_path):
    # ShareGPT V3's own ids are segments already: Abc0007_0 and Abc0007_4 are one conversation.
    records = [
        {"id": f"Abc{n:04}_{part}", "messages": chat(*["word " * 30] * 4)} for n in range(200) for part in (0, 4)
    ]
    data = "\n".join(map(json.dumps, records))
    train, held = hold_out(vtools, eot, data, tmp_path)
    sides = [{re.sub("_.*", "", part["id"]) for part in side} for side in (train, held)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 200
    assert 20 <= len(sides[1]) <= 60
    assert hold_out(vtools, eot, data, tmp_path, "-j", 2) == [train, held]
    _, held_backwards = hold_out(vtools, eot, "\n".join(map(json.dumps, records[::-1])), tmp_path)
    assert {part["id"] for part in held_backwards} == {part["id"] for part in held}


@pytest.mark.parametrize(
    "args", [["--hold-out", "1%"], ["--hold-out", "2", "--hold-out-file", "x"], ["--template", "nonsense"]]
)
def test_options_that_make_no_sense_stop_before_reading(vtools, eot, args):
    assert vtools("split", "--tokenizer", eot, *args).returncode in (1, 2)


def test_without_a_tokenizer_it_asks_for_one(vtools):
    done = vtools("split", env={"VTOOLS_MODEL": ""})
    assert done.returncode == 2
    assert "--tokenizer MODEL" in done.errors


@pytest.mark.parametrize(("name", "step"), [("identity", 1), ("example", 5), ("Zr4kQ1w", 1)])
def test_ids_that_only_count_the_rows_are_conversations_of_their_own(vtools, eot, tmp_path, name, step):
    records = [{"id": f"{name}_{n * step}", "messages": chat("Hi", f"Hello {n}")} for n in range(100)]
    train, held = hold_out(vtools, eot, "\n".join(map(json.dumps, records)), tmp_path)
    assert 5 <= len(held) <= 40
    assert len(train) + len(held) == 100


@pytest.mark.parametrize("name", ["{}", "chat-{}", "thread_{}"])
def test_pieces_that_another_tool_has_cut_stay_together_whatever_their_ids_and_order(vtools, eot, tmp_path, name):
    records = [
        {"id": f"{name.format(n)}_{start}", "messages": chat(*["word " * 5] * length)}
        for n in range(40)
        for start, length in ((0, 4), (4, 6), (9, 2), (11 + n % 2, 2))
    ]
    random.Random(0).shuffle(records)
    train, held = hold_out(vtools, eot, "\n".join(map(json.dumps, records)), tmp_path)
    sides = [{part["id"].rsplit("_", 1)[0] for part in side} for side in (train, held)]
    assert not sides[0] & sides[1]
    assert 3 <= len(sides[1]) <= 20


def test_a_key_can_say_which_records_belong_together(vtools, eot, tmp_path):
    records = [{"id": f"a{n}", "messages": chat("Hi", "Hello"), "source": {"uri": f"page{n // 5}"}} for n in range(100)]
    data = "\n".join(map(json.dumps, records))
    train, held = hold_out(vtools, eot, data, tmp_path, "--group", "source.uri")
    sides = [{part["source"]["uri"] for part in side} for side in (train, held)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 20
    pieces = [{"id": f"a_{4 * n}", "messages": chat(*["Hi"] * 4)} for n in range(50)]
    assert vtools("split", "--tokenizer", eot, *HOLD_OUT, stdin="\n".join(map(json.dumps, pieces))).returncode == 1
    assert hold_out(vtools, eot, "\n".join(map(json.dumps, pieces)), tmp_path, "--group", "id")[1]


def test_a_share_that_could_not_be_held_out_is_told(vtools, eot, tmp_path):
    def told(records, code):
        done = vtools("split", "--tokenizer", eot, *HOLD_OUT, stdin="\n".join(map(json.dumps, records)))
        assert done.returncode == code, done.errors
        return done.errors

    few = told([{"id": "a", "messages": chat("Hi", "Hello")}], 1)
    assert "--hold-out 20%: none of 1 conversations would be held out" in few or "each of 1" in few
    assert not (tmp_path / "train.jsonl").exists()
    uneven = [{"id": f"a{n}", "of": "one" if n < 60 else n, "messages": chat("Hi", "Hello")} for n in range(100)]
    done = vtools("split", "--tokenizer", eot, *HOLD_OUT, "--group", "of", stdin="\n".join(map(json.dumps, uneven)))
    assert "% of all segments, " in done.errors
    assert told([], 0).count("\n") == 1


def test_a_segment_key_of_somebody_else_passes_through(vtools, eot):
    record = {"id": "a", "messages": chat("Hi", "Hello"), "segment": "train"}
    (part,) = vtools("split", "--tokenizer", eot, stdin=json.dumps(record)).records
    assert part["segment"] == "train"


def test_a_segment_that_is_cut_again_stays_on_its_side(vtools, eot):
    record = {"id": "abc", "messages": chat(*["word " * 40] * 12)}
    once = vtools("split", "--tokenizer", eot, "--max-tokens", 400, stdin=json.dumps(record)).stdout
    twice = vtools("split", "--tokenizer", eot, "--max-tokens", 200, stdin=once).records
    assert {part["segment"]["of"] for part in twice} == {"abc"}
    assert {segments.base_id(part) for part in twice} == {"abc"}
    assert [m for part in twice for m in part["messages"]] == record["messages"]


MIXED = "".join(
    json.dumps({"id": f"chat{n}", "messages": chat(*["word " * (n * 7 % 90), "word " * (n % 150)] * (n % 7))}) + "\n"
    for n in range(300)
)


@pytest.mark.parametrize("how", ["keep", "drop", "truncate", "split-answer"])
def test_the_same_bytes_for_any_number_of_processes_and_any_hash_seed(vtools, llama, tmp_path, how):
    seen = set()
    for jobs, seed in ((1, "0"), (2, "7"), (3, "99")):
        args = ["--tokenizer", llama, "--max-tokens", 250, "--overlong", how, "--overlap-turns", 1, "-j", jobs,
                "--rejects", "rejects", "--stats", "stats", "--hold-out", "20%", "--hold-out-file", "held"]  # fmt: skip
        done = vtools("split", *args, stdin=MIXED + "no JSON\n", env={"PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.errors
        rejects, stats = saved(tmp_path)
        assert stats["in"] == 301
        seen.add((done.stdout, done.errors, *((tmp_path / name).read_bytes() for name in ("rejects", "stats", "held"))))
    assert len(seen) == 1
    lines = [row["line"] for row in rejects]
    assert lines == sorted(lines)


def test_it_loads_neither_torch_nor_transformers(llama, tmp_path):
    (tmp_path / "in").write_text(MIXED)
    code = (
        "import sys; from vtools import cli\n"
        f"sys.argv = ['vtools', 'split', 'in', '-q', '-o', 'out', '--tokenizer', {llama!r}]\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    done = python(code, cwd=tmp_path)
    assert done.stdout == b"[]\n", done.errors


@pytest.mark.slow
@pytest.mark.parametrize("how", ["keep", "split-answer"])
def test_an_answer_of_many_megabytes_takes_a_few_times_its_size(llama, tmp_path, how):
    args = ["split", "in", "--tokenizer", llama, "-q", "-o", "out", "--overlong", how]
    (tmp_path / "in").write_text(json.dumps({"id": "a", "messages": chat("q", "a")}))
    small = peak(*args, cwd=tmp_path)
    answer = "".join(f"word{n % 5000} and {n * n % 97} so on,\n" for n in range(1_000_000))
    (tmp_path / "in").write_text(json.dumps({"id": "a", "messages": chat("q", answer)}))
    assert peak(*args, cwd=tmp_path) - small < 7 * len(answer)


@pytest.mark.slow
def test_the_words_that_are_remembered_do_not_fill_the_memory(llama, tmp_path):
    """As many different words as a million conversations have, and more."""
    source = random.Random(0)
    with open(tmp_path / "in", "w") as out:
        for number in range(1000):
            texts = [" ".join("".join(source.choices("абвгдежзиклмнопр", k=24)) for _ in range(400)) for _ in range(2)]
            out.write(json.dumps({"id": str(number), "messages": chat(*texts)}) + "\n")
    assert peak("split", "in", "--tokenizer", llama, "-q", "-o", "out", cwd=tmp_path) < 150 << 20
