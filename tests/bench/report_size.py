"""CPU seconds and peak memory of `vtools report` for 10,000 judgments of ten models, each pair in both orders.

python tests/bench/report_size.py [--judgments N]
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from running import command, measured

WORDS = "Both answer the question, one of them better. " * 20


def judgments(number: int) -> list[dict]:
    dice = random.Random(1)
    rows = []
    for question in itertools.count():
        for (a, b), order in itertools.product(itertools.combinations(range(10), 2), ("ab", "ba")):
            scores = [min(10, max(1, round(dice.gauss(7 + 0.1 * model, 1.5)))) for model in (a, b)]
            verdict = "a" if scores[0] > scores[1] else "b" if scores[0] < scores[1] else "tie"
            row = {"key": f"{len(rows):064x}", "id": f"q{question}", "category": f"c{question % 8}", "mode": "pair"}
            row |= {"a": f"model-{a}", "b": f"model-{b}", "order": order, "judge": "judge-2026-01-01", "scores": scores}
            lengths = [dice.randrange(200, 2000) for _ in scores]
            rows.append(row | {"verdict": verdict, "text": WORDS, "len": lengths, "rubric": "vicuna"})
            if len(rows) == number:
                return rows
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judgments", type=int, default=10_000)
    number = parser.parse_args().judgments
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "judgments.jsonl"
        tiny.write(file, judgments(number))
        done, seconds, memory = measured(command("report", "--json", file))
        assert done.returncode == 0 and len(done.records[0]["pairs"]) == 45, done.errors
        print(f"{number:,} judgments, 45 pairs, 10 ratings: {seconds:.2f} CPU seconds, {memory / 2**20:.0f} MiB")
