"""stats: counts that add up, metrics summed up, pictures that can be opened."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from conftest import chat

from vtools import chart

RECORDS = [
    {"id": "a", "messages": chat("Hi", "Hello"), "source": {"kind": "x", "license": "mit"}},
    {"id": "b", "messages": chat("Hi", "Hello", "And?", "So.", system="S")},
    {"conversations": [{"from": "robot", "value": "?"}]},
]
METRICS = [{"step": 0, "eval_loss": 2.5}, *({"step": n, "loss": 2 - n / 10, "tokens": 10, "trained_tokens": 4} for n in range(1, 9)), {"step": 8, "eval_loss": 1.5}]  # fmt: skip


def jsonl(rows):
    return "\n".join(map(json.dumps, rows))


def test_conversations_are_counted(vtools):
    (found,) = vtools("stats", stdin=jsonl(RECORDS)).records
    assert (found["records"], found["messages"], found["characters"]) == (3, 7, 22)
    assert found["roles"] == {"user": 3, "assistant": 3, "system": 1}
    assert found["user_turns"] == {"<=1": 1, "<=2": 1}
    assert found["licences"] == {"mit": 1, "None": 1}
    assert found["reasons"] == {"stats: unknown_role": 1}


def test_a_rejects_file_is_counted_by_stage_and_reason(vtools):
    rows = [
        {"stage": "clean", "reason": "empty"},
        {"stage": "clean", "reason": "empty"},
        {"stage": "split", "reason": "overlong"},
    ]
    (found,) = vtools("stats", stdin=jsonl(rows)).records
    assert found["reasons"] == {"clean: empty": 2, "split: overlong": 1}


def test_metrics_are_summed_up(vtools):
    (found,) = vtools("stats", stdin=jsonl(METRICS)).records
    assert found == {"steps": 8, "first_loss": 1.9, "last_loss": 1.2, "tokens": 80, "trained_tokens": 32, "first_eval_loss": 2.5, "last_eval_loss": 1.5}  # fmt: skip


def test_an_empty_input_counts_nothing(vtools):
    (found,) = vtools("stats").records
    assert found["records"] == 0


@pytest.mark.parametrize("rows", [RECORDS, METRICS])
def test_a_plot_is_a_picture_with_the_numbers_in_it(vtools, tmp_path, rows):
    assert vtools("stats", "--plot", "p.svg", stdin=jsonl(rows)).returncode == 0
    tree = ElementTree.parse(tmp_path / "p.svg")
    marks = [element.tag.rpartition("}")[2] for element in tree.iter()]
    assert "polyline" in marks or marks.count("rect") > 2
    pytest.importorskip("matplotlib")
    assert vtools("stats", "--plot", "p.png", stdin=jsonl(rows)).returncode == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_metrics_give_the_same_picture(vtools, tmp_path):
    for name in ("one.svg", "two.svg"):
        vtools("stats", "--plot", name, stdin=jsonl(METRICS))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_another_format_is_refused(vtools):
    done = vtools("stats", "--plot", "p.gif", stdin=jsonl(METRICS))
    assert (done.returncode, done.errors) == (2, "vtools stats: p.gif: a picture is .svg or .png\n")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (-3, 17), (1e-7, 2e-7), (0.013, 0.0131), (0, 123456)])
def test_ticks_are_few_round_and_enclose_the_data(low, high):
    found = chart.ticks(low, high)
    assert 2 <= len(found) <= 12
    assert found[0] <= low and found[-1] >= high
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in zip(found, found[1:], strict=False)}
    assert steps == {1.0}


def test_a_chart_escapes_what_it_is_given(tmp_path):
    chart.stacked_bars(tmp_path / "x.svg", "a < b & c", [("<script>", {"win": 1, "loss": 2})])
    ElementTree.parse(tmp_path / "x.svg")
