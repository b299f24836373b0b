"""Answers that a program checks, several to a question: the chance that one of k passes."""

import math
from statistics import fmean
from typing import Any

from vtools.report.intervals import mean_interval


def summarise(model: str, questions: dict[str, list[bool]]) -> dict[str, Any]:
    """pass@k of one model, for k = 1 and as many answers as each question has at least, and powers of two between.

    The chance of a question is 1 - C(n - c, k) / C(n, k), of which c of n answers pass: unbiased. Source: Chen et al.,
    Evaluating Large Language Models Trained on Code (arXiv 2107.03374).
    """
    least = min(map(len, questions.values()))
    sizes = [k for power in range(least.bit_length()) if (k := 2**power) < least]
    found = {}
    for k in [*sizes, least]:
        rows = [
            (question, 1 - math.comb(len(each) - sum(each), k) / math.comb(len(each), k), 1.0)
            for question, each in questions.items()
        ]
        ends = mean_interval(rows)
        found[str(k)] = {
            "rate": fmean(value for _, value, _ in rows),
            "ci": [max(0.0, ends[0]), min(1.0, ends[1])] if ends else None,
        }
    return {"model": model, "questions": len(questions), "answers": sum(map(len, questions.values())), "pass": found}
