"""`vtools report --gate`: whether a model is as good as another, as an exit status that cron can read."""

from __future__ import annotations

import pytest
from chats import jsonl
from judgments import in_both_orders

LEVEL = [row for n in range(400) for row in in_both_orders(str(n), [5, 9] if n % 2 else [9, 5])]
BETTER = [row for n in range(60) for row in in_both_orders(str(n), [5, 9] if n % 6 else [9, 5])]
ALIKE = [row for n in range(60) for row in in_both_orders(str(n), [8, 8.2] if n % 2 else [8.2, 8])]
FEW = [row for n in range(8) for row in in_both_orders(str(n), [5, 9])]


@pytest.mark.parametrize(
    ("rows", "gate", "code", "why"),
    [
        (BETTER, "B >= A - 2%", 0, "passed"),
        (BETTER, "B > A", 0, "passed"),
        (BETTER, "tuned >= base + 10%", 0, "passed"),
        (BETTER, "A >= B - 2%", 1, "failed"),
        (BETTER, "base > tuned", 1, "failed"),
        (BETTER, "win rate: B >= A + 60%", 75, "undecided"),
        (LEVEL, "B >= A", 75, "undecided"),
        (LEVEL, "B >= A - 2%", 75, "undecided"),
        (LEVEL, "B >= A - 20%", 0, "passed"),
        (LEVEL, "B >= A + 20%", 1, "failed"),
        (ALIKE, "score: B >= A - 2%", 0, "passed"),
        (ALIKE, "score: A >= B - 2%", 0, "passed"),
        (ALIKE, "score: B >= A + 2%", 1, "failed"),
        (ALIKE, "score: B > A", 75, "undecided"),
    ],
)
def test_the_exit_status_says_passed_failed_or_undecided_and_one_line_says_why(vtools, rows, gate, code, why):
    done = vtools("report", "--gate", gate, stdin=jsonl(*rows))
    assert done.returncode == code, done.errors
    (line,) = done.errors.splitlines()
    assert why in line and f"gate {gate!r}" in line and "95 %" in line
    assert done.records[0]["pairs"]  # the report itself is there in any case


def test_too_few_questions_decide_nothing(vtools):
    done = vtools("report", "--gate", "B >= A", stdin=jsonl(*FEW))
    assert done.returncode == 75 and "8 questions are too few" in done.errors


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("B", "is no condition: write one as in 'B >= A - 2%'"),
        ("B >= A - much", "no such pair of models was judged; there are: base and tuned"),
        ("B >= B", "compares a model with itself"),
        ("tuned >= gpt", "no such pair of models was judged; there are: base and tuned"),
    ],
)
def test_what_is_no_gate_is_said_before_it_could_pass(vtools, gate, said):
    done = vtools("report", "--gate", gate, stdin=jsonl(*FEW))
    assert done.returncode == 2 and said in done.errors


def test_several_judges_decide_together(vtools):
    rows = BETTER + [{**row, "judge": "judge-2"} for row in BETTER]
    done = vtools("report", "--gate", "B >= A - 2%", stdin=jsonl(*rows))
    assert done.returncode == 0 and "60 questions" in done.errors
