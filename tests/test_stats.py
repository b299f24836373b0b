"""stats: counts that add up, metrics summed up, pictures that can be opened."""

from __future__ import annotations

import json
import re
import shutil
from xml.etree import ElementTree

import pytest
from chats import chat, jsonl
from running import PEAK, command, on_a_terminal, python

from vtools.records import language

plots = pytest.importorskip("vtools.plots", exc_type=ImportError)

RECORDS = [
    {"id": "a", "messages": chat("Hi", "Hello"), "source": {"kind": "x", "license": "mit"}},
    {"id": "b", "messages": chat("Hi", "Hello", "And?", "So.", system="S")},
    {"conversations": [{"from": "robot", "value": "?"}]},
]
METRICS = [{"step": 0, "eval_loss": 2.5}, *({"step": n, "loss": 2 - n / 10, "tokens": 10, "trained_tokens": 4} for n in range(1, 9)), {"step": 8, "eval_loss": 1.5}]  # fmt: skip


def test_conversations_are_counted(vtools):
    (found,) = vtools("stats", stdin=jsonl(*RECORDS)).records
    assert (found["records"], found["messages"], found["characters"]) == (3, 7, 22)
    assert found["roles"] == {"user": 3, "assistant": 3, "system": 1}
    assert found["user_turns"] == {"<=1": 1, "<=2": 1}
    assert found["licenses"] == {"mit": 1, "None": 1}
    assert found["reasons"] == {"stats: unknown_role": 1}


def test_a_rejects_file_is_counted_by_stage_and_reason(vtools):
    rows = [
        {"stage": "clean", "reason": "empty"},
        {"stage": "clean", "reason": "empty"},
        {"stage": "split", "reason": "overlong"},
    ]
    (found,) = vtools("stats", stdin=jsonl(*rows)).records
    assert found["reasons"] == {"clean: empty": 2, "split: overlong": 1}


def test_metrics_are_summed_up(vtools):
    (found,) = vtools("stats", stdin=jsonl(*METRICS)).records
    assert found == {"steps": 8, "first_loss": 1.9, "last_loss": 1.2, "tokens": 80, "trained_tokens": 32, "first_eval_loss": 2.5, "last_eval_loss": 1.5}  # fmt: skip


def test_an_empty_input_counts_nothing(vtools):
    (found,) = vtools("stats").records
    assert found["records"] == 0


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        (RECORDS, ["3 records by their length", "Records by user turns", "&lt;=2"]),
        (METRICS, ["lower is better", "training loss", "held-out loss", "step"]),
    ],
)
def test_a_plot_is_a_picture_with_its_words_as_text(vtools, tmp_path, rows, shown):
    assert vtools("stats", "--plot", "p.svg", stdin=jsonl(*rows)).returncode == 0
    ElementTree.parse(tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    assert all(text in drawn for text in shown)
    assert vtools("stats", "--plot", "p.png", stdin=jsonl(*rows)).returncode == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_metrics_give_the_same_picture(vtools, tmp_path):
    for name in ("one.svg", "two.svg"):
        vtools("stats", "--plot", name, stdin=jsonl(*METRICS))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize("tool", ["stats", "report"])
def test_another_format_is_refused_before_any_work(vtools, tmp_path, tool):
    done = vtools(tool, "--plot", "p.gif", "missing.jsonl")
    assert (done.returncode, done.errors) == (
        2,
        f"vtools {tool}: p.gif: not a chart format; name a .svg or .png file\n",
    )


@pytest.mark.parametrize(
    ("rows", "why"),
    [(METRICS[1:2], "1 value"), ([{"step": 1}], "no values"), (RECORDS[:1], "1 value"), ([], "no values")],
)
def test_fewer_than_two_values_are_counted_but_not_drawn(vtools, tmp_path, rows, why):
    done = vtools("stats", "--plot", "p.svg", "-o", "counts.json", stdin=jsonl(*rows))
    assert (done.returncode, done.errors) == (1, f"vtools stats: no chart: {why}, and a chart needs at least two\n")
    assert (tmp_path / "counts.json").exists() and not (tmp_path / "p.svg").exists()


def test_names_of_any_kind_are_drawn_whole():
    long = "a/name-with no end, " * 12
    names = ["<script> & co", "a $x_1$ b", "\x1b[31m", "名前", long]
    bars = plots.stacked_bars("a < b & c", "share", [(name, {"win": 1, "tie": 0, "loss": 2}) for name in names])
    drawn = plots.picture("x.svg", bars)
    texts = [element.text or "" for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    for shown in ("a < b & c", "<script> & co (3)", "a $x_1$ b (3)", "\ufffd[31m (3)", "名前 (3)"):
        assert shown in texts
    assert long.replace(" ", "") in "".join(texts).replace(" ", "")


def test_no_words_of_a_picture_lie_outside_of_it():
    rows = [("HuggingFaceTB/SmolLM2-135M-Instruct-" * 4, {"win": 1, "tie": 0, "loss": 2}), ("x", {"win": 1, "tie": 1, "loss": 999})]  # fmt: skip
    with plots.matplotlib.rc_context(plots.STYLE):
        figure = plots.drawn(plots.stacked_bars("A title of many words " * 9, "share", rows))
        figure.draw_without_rendering()
    for text in figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_text()):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    (legend,), axes = figure.legends, figure.axes[0]
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def record(*texts, **more) -> dict:
    return {"messages": chat(*texts), **more}


def test_exact_duplicates_and_duplicate_ids_are_counted_apart(vtools):
    rows = [
        record("Hi", " A word", id="a"),
        record("Hi", "A word\r\n", id="b"),
        record("Hi", "Another", id="a"),
        record("Hi", "Another"),
        record("Hi", "Another"),
        record("HiAnother"),
    ]
    (found,) = vtools("stats", stdin=jsonl(*rows)).records
    assert (found["duplicate_texts"], found["duplicate_ids"]) == (3, 1)


def test_segments_and_the_conversations_they_were_cut_from_are_counted(vtools):
    rows = [record("Hi", f"{of} {index}", segment={"of": of, "index": index, "count": 2}) for of in "ab" for index in range(2)]  # fmt: skip
    (found,) = vtools("stats", stdin=jsonl(*[*rows, record("Hi", "whole")])).records
    assert (found["records"], found["segments"], found["conversations_cut"]) == (5, 4, 2)


def test_histograms_show_every_bin_between_the_first_and_the_last(vtools):
    rows = [record("x" * length) for length in (1, 256, 257, 512, 5000, 10**6)]
    (found,) = vtools("stats", stdin=jsonl(*rows)).records
    assert found["record_characters"] == {"<=256": 2, "<=512": 2, "<=1024": 0, "<=2048": 0, "<=4096": 0, "<=8192": 1, "<=16384": 0, "<=32768": 0, "<=65536": 0, "<=131072": 0, ">131072": 1}  # fmt: skip


def test_tokens_are_those_that_split_and_train_count(vtools, eot, tmp_path):
    rows = jsonl(*(record(f"How are you? I am number {number}. " * (number + 1)) for number in range(20)))
    (found,) = vtools("stats", "--tokenizer", eot, stdin=rows).records
    assert vtools("split", "--tokenizer", eot, "--stats", "split.json", stdin=rows).returncode == 0
    (counted,) = vtools("stats", "--tokenizer", eot, "--template", "auto", stdin=rows).records
    assert found["tokens"] == counted["tokens"] == json.loads((tmp_path / "split.json").read_text())["tokens"]


def test_without_a_template_tokens_are_those_of_the_texts_with_names_of_control_tokens_as_text(vtools, eot, tmp_path):
    from tokenizers import Tokenizer

    bare = shutil.copytree(eot, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    backend = Tokenizer.from_file(f"{eot}/tokenizer.json")
    backend.encode_special_tokens = True
    texts = [f"How are you? I am number {number}.\n\n<|eot|>" * (number + 1) for number in range(40)]
    counts = [len(backend.encode(text, add_special_tokens=False)) for text in texts]
    assert counts[0] > len(Tokenizer.from_file(f"{eot}/tokenizer.json").encode(texts[0], add_special_tokens=False))
    done = vtools("stats", "--tokenizer", bare, stdin=jsonl(*map(record, texts)))
    assert "no chat template; choose one" in done.errors and "counts the texts alone" in done.errors
    (found,) = done.records
    assert found["tokens"] == sum(counts)
    assert found["record_tokens"]["<=64"] == sum(count <= 64 for count in counts)
    assert sum(found["record_tokens"].values()) == 40
    assert "tokens" not in vtools("stats", stdin=jsonl(*map(record, texts))).records[0]


TEXTS = {
    "en": "The weather is nice today, and we could go for a walk along the river after lunch.",
    "de": "Das Wetter ist heute schön, und wir könnten nach dem Essen am Fluss spazieren gehen.",
    "fr": "Il fait beau aujourd'hui, et nous pourrions nous promener au bord de la rivière.",
    "zh": "今天天气很好，我们午饭后可以去河边散步。",
    "he": "מזג האוויר נעים היום, ואפשר לטייל ליד הנהר אחרי ארוחת הצהריים.",
}
ENGLISH_CODE = "\n".join(["def walk(along_the_river): return 'the weather is nice today and we go for lunch'"] * 20)


def test_languages_are_counted_and_fenced_code_is_in_none(vtools):
    pytest.importorskip("pycld2")
    rows = [record(text, f"```python\n{ENGLISH_CODE}\n```\n{text}") for text in TEXTS.values()]
    (found,) = vtools("stats", stdin=jsonl(*[*rows, record("1 + 1", f"```\n{ENGLISH_CODE}\n```")])).records
    assert found["languages"] == {**dict.fromkeys(TEXTS, 1), "un": 1}


@pytest.mark.parametrize("odd", ["\x00", "\x1b", "\x85", "\ufffe", "\U0010ffff", "\ufdd0", "\ud800"])
def test_no_character_keeps_a_language_from_being_told(odd):
    pytest.importorskip("pycld2")
    assert language.detect(TEXTS["de"] + odd + TEXTS["de"]) == "de"


@pytest.mark.parametrize("text", ["", " ", "hi", "12 + 30 = 42", "```\ncode\n```", "~~~\n" + TEXTS["en"]])
def test_too_little_text_is_of_no_language(text):
    pytest.importorskip("pycld2")
    assert language.detect(text) == "un"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a\n```python\nx\n```\nb", "a\n\nb"),
        ("a\n~~~\n```\n~~~~\nb", "a\n\nb"),
        ("a\n````\n```\nx\n````\nb", "a\n\nb"),
        ("a\n```\nx\n```python\ny\n```\nb", "a\n\nb"),
        ("a\n```\nnever closed", "a\n"),
        ("a ```inline``` b", "a ```inline``` b"),
        ("> ```\n> x\n> ```\nb", "\nb"),
    ],
)
def test_fences_end_as_commonmark_ends_them(text, left):
    assert language.without_code(text) == left


def test_two_files_of_records_or_of_counts_are_compared(vtools, tmp_path):
    before, after = [record("Hi", "A word"), record("Hi", "Another")], [record("Hi", "A word", "And?", "So.")]
    (tmp_path / "before.jsonl").write_bytes(jsonl(*before))
    (tmp_path / "after.jsonl").write_bytes(jsonl(*after))
    for name in ("before", "after"):
        assert vtools("stats", f"{name}.jsonl", "-o", f"{name}.json").returncode == 0
    (found,) = vtools("stats", "--diff", "before.jsonl", "after.jsonl").records
    assert found["changed"]["records"] == {"before": 2, "after": 1, "percent": -50.0}
    assert found["changed"]["user_turns.<=2"] == {"before": 0, "after": 1, "percent": None}
    assert found["changed"]["user_turns.<=1"] == {"before": 2, "after": 0, "percent": -100.0}
    assert "messages" not in found["changed"]
    for operands in (("before.json", "after.json"), ("before.json", "after.jsonl")):
        assert vtools("stats", "--diff", *operands).records == [found]
    (same,) = vtools("stats", "--diff", "after.json", "after.jsonl").records
    assert same["changed"] == {}


def test_the_counts_of_two_rejects_files_are_not_added_up(vtools, tmp_path):
    for name, bad in (("a", 3), ("b", 1)):
        (tmp_path / name).write_bytes(jsonl(*[{"messages": bad}] * bad + [record("Hi", "A word")]))
    (found,) = vtools("stats", "--diff", "a", "b").records
    assert found["changed"]["reasons.stats: bad_schema"] == {"before": 3, "after": 1, "percent": -66.67}


@pytest.mark.parametrize("operands", [[], ["a"], ["a", "b", "c"]])
def test_a_comparison_takes_two_files(vtools, operands):
    assert vtools("stats", "--diff", *operands).returncode == 2


def test_broken_input_ends_the_count_after_what_came_before_it_is_written(vtools, tmp_path):
    data = jsonl(*RECORDS[:2]) + b"not json\n" + jsonl(*RECORDS[:1])
    done = vtools("stats", stdin=data)
    assert (done.returncode, done.records[0]["records"]) == (1, 2)
    assert done.errors.startswith("vtools stats: stdin:3: ")
    assert vtools("stats", "-o", "counts.json", stdin=data).returncode == 1
    assert not (tmp_path / "counts.json").exists()
    done = vtools("stats", "--rejects", "rejects.jsonl", stdin=data)
    assert (done.returncode, done.records[0]["records"]) == (0, 3)
    assert done.records[0]["reasons"] == {"stats: bad_json": 1}
    (row,) = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert (row["stage"], row["reason"], row["line"]) == ("stats", "bad_json", 3)


def test_a_terminal_shows_a_table_with_bars_that_no_name_in_the_data_can_disturb(tmp_path):
    rows = [*RECORDS, record("Hi", "x", source={"kind": "[red]\x1b[2J", "license": "l"})]
    seen = on_a_terminal(command("stats"), tmp_path, jsonl(*rows))
    assert re.search(r"assistant +4 +44\.4% +\x1b\[36m█+", seen)
    assert "[red]" in seen and "\x1b[2J" not in seen
    plain = on_a_terminal(command("stats"), tmp_path, jsonl(*rows), NO_COLOR="1")
    assert "\x1b[36m" not in plain and "█" in plain
    assert on_a_terminal(command("stats", "-q"), tmp_path, jsonl(*rows)) == ""


def test_a_comparison_on_a_terminal_shows_the_change_in_percent(tmp_path):
    for name, count in (("a", 4), ("b", 1)):
        (tmp_path / name).write_bytes(jsonl(*[record("Hi", f"{number}") for number in range(count)]))
    seen = on_a_terminal(command("stats", "--diff", "a", "b"), tmp_path)
    assert re.search(r"records +4 +1 +-75\.0 %", seen)


def test_the_same_counts_for_any_hash_seed(vtools):
    rows = jsonl(*[record("Hi", f"{number % 7}", id=f"{number % 5}") for number in range(50)])
    assert vtools("stats", stdin=rows, env={"PYTHONHASHSEED": "1"}).stdout == vtools("stats", stdin=rows, env={"PYTHONHASHSEED": "2"}).stdout  # fmt: skip


def test_a_picture_of_records_has_a_panel_for_turns_characters_and_tokens(vtools, tmp_path, eot):
    assert vtools("stats", "--tokenizer", eot, "--plot", "p.svg", stdin=jsonl(*RECORDS)).returncode == 0
    text = (tmp_path / "p.svg").read_text()
    assert [name in text for name in ("by user turns", "by characters", "by tokens")] == [True] * 3


def test_a_key_costs_a_dozen_bytes_at_most():
    """Measured in a process of its own, as peak memory does not fall."""
    code = (
        "from vtools.stats.counting import Distinct\n"
        f"keys, peak = Distinct(), lambda: {PEAK}\n"
        "start = peak()\n"
        "for n in range(2_000_000): keys.add(n * 0x9E3779B97F4A7C15 >> 3)\n"
        "assert keys.repeated() == 0; keys.add(0); assert keys.repeated() == 1\n"
        "print((peak() - start) / 2_000_000)\n"
    )
    assert float(python(code).stdout) < 12
