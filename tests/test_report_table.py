"""The table of `vtools report` on a terminal: its first two lines, its width, and what hostile names do to it."""

from __future__ import annotations

import os
import pty
import subprocess
import termios

import pytest
from chats import jsonl
from judgments import answered, in_both_orders, judged, written
from running import command, environment

pytest.importorskip("rich")


def lines(vtools, rows: list[dict], *arguments: str) -> list[str]:
    done = vtools("report", "--table", *arguments, stdin=jsonl(*rows))
    assert done.returncode == 0, done.errors
    return done.stdout.decode().splitlines()


def scored(number: int, wins: int, **fields) -> list[dict]:
    return [row for n in range(number) for row in in_both_orders(str(n), [5, 9] if n < wins else [9, 5], **fields)]


@pytest.mark.parametrize(
    ("rows", "first", "second"),
    [
        (scored(40, 30), "tuned beats base in 75.0% of 40 questions, ties half.", "This is sure: "),
        (scored(40, 10), "base beats tuned in 75.0% of 40 questions, ties half.", "This is sure: "),
        (scored(40, 22), "tuned beats base in 55.0% of 40 questions, ties half.", "This is not sure: "),
        (scored(40, 20), "base and tuned each win half of 40 questions, ties half.", "This is not sure: "),
        (
            scored(8, 8),
            "tuned beats base in 100.0% of 8 questions, ties half.",
            "This is sure: p = 0.0078 by an exact test; too few",
        ),
        ([judged("1", "ab", None)], "Nothing is known of base and tuned:", "no judgment of them has a verdict"),
    ],
)
def test_the_first_two_lines_say_who_is_better_by_how_much_and_whether_that_is_sure(vtools, rows, first, second):
    found = lines(vtools, rows)
    assert found[0] == first and found[1].startswith(second), found[:2]


def test_of_several_models_the_first_two_lines_name_the_best(vtools):
    rows = scored(40, 30, a="x", b="y") + scored(40, 35, a="x", b="z") + scored(40, 28, a="y", b="z")
    first, second = lines(vtools, rows)[:2]
    assert first.startswith("z is the best of 3 models") and second.startswith(("This is sure", "This is not sure"))


def test_the_table_fits_80_columns_whatever_the_names_are(vtools):
    rows = []
    for model in ("organisation/a-model-with-a-very-long-name-13b-instruct-v0.1-2026-11-29", "x" * 5000, "模型" * 60):
        rows += scored(24, 12, b=model, judge="a-judge-with-quite-a-long-name-2026-11-29", category="category" * 20)
    for line in lines(vtools, rows):
        assert len(line) + sum("\u2e80" < each < "\uffff" and each != "…" for each in line) <= 80, line


def on_a_terminal_of(columns: int, rows: list[dict], folder) -> str:
    """What the report shows where its stdout is a terminal."""
    written(folder, "judgments.jsonl", rows)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, columns))
    process = subprocess.Popen(
        command("report", "judgments.jsonl"), stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, cwd=folder,
        env=environment(TERM="xterm-256color"),
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(master)
    assert process.wait(60) == 0
    return seen.decode()


def test_hostile_names_and_categories_steer_no_terminal(tmp_path):
    hostile = "\x1b]0;OWNED\x07\x1b[2J\x9b31m[bold red]b[/] \u202egnp.exe :smile: \r\n"
    rows = scored(24, 12, a=f"a {hostile}", b=f"b {hostile}", judge=f"j {hostile}", category=f"c {hostile}")
    shown = on_a_terminal_of(60, rows, tmp_path)
    for steering in ("\x1b]", "\x1b[2J", "\x9b", "\u202e", "\x07"):
        assert steering not in shown
    assert "[bold red]" in shown and ":smile:" in shown and "\\u001b]0;OWNED" in shown.replace("\r\n", "")


def test_a_terminal_gets_the_table_and_a_pipe_json(vtools, tmp_path):
    rows = scored(24, 20)
    assert "tuned beats base in 83.3% of 24 questions" in on_a_terminal_of(80, rows, tmp_path)
    done = vtools("report", "judgments.jsonl")
    assert done.records[0]["headline"][0] == "tuned beats base in 83.3% of 24 questions, ties half."
    assert vtools("report", "judgments.jsonl", "--json").stdout == done.stdout


def test_answers_of_a_model_that_nobody_judged_are_an_error_that_says_how_to_name_them(vtools, tmp_path):
    written(tmp_path, "other.jsonl", [answered("0", "other", "words")])
    rows = jsonl(*scored(2, 1))
    done = vtools("report", "--answers", "other.jsonl", stdin=rows)
    assert done.returncode == 2 and "nobody judged answers of other, but of base, tuned" in done.errors
    assert "--answers base=other.jsonl" in done.errors
    assert vtools("report", "--answers", "base=other.jsonl", stdin=rows).returncode == 0
