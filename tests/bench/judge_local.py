"""What SmolLM2-135M is worth as a judge: the Vicuna blog's questions, ChatGPT's answers and Vicuna's, in both orders.

    VTOOLS_TEST_DATA=DATA python tests/bench/judge_local.py [--questions 8] [--out judgments.jsonl]

`vtools serve` gives the log-probabilities; printed are the probability that the judge gave to verdicts at all, the
verdicts, and what `vtools report` says of them. All 80 questions take two cores some 20 minutes. With --out, a run that
was stopped resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import DATA
from running import run
from serving import Server
from smollm2 import add_model

BLOG = DATA / "vicuna-blog"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--questions", type=int, default=80, help="how many of the 80")
    parser.add_argument("--out", help="keep the judgments here")
    options = parser.parse_args()
    server = Server(f"smollm2={options.model}", "-q")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gpt35", "vicuna-13b"):
            answers = (BLOG / "answer" / f"answer_{name}.jsonl").read_text().splitlines(keepends=True)
            Path(folder, f"{name}.jsonl").write_text("".join(answers[: options.questions]))
        out = Path(options.out or Path(folder, "judgments.jsonl")).absolute()
        ask = ("--base-url", server.url, "--model", "smollm2", "--questions", BLOG / "question.jsonl", "--logprobs")
        done = run("judge", "gpt35.jsonl", "vicuna-13b.jsonl", *ask, "-j", 4, "-o", out, cwd=folder, timeout=36000)
        server.end()
        print(done.errors, end="")
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        masses = [row["mass"] for row in rows]
        print(
            f"{len(rows)} calls; mass: mean {fmean(masses):.3f}, median {median(masses):.3f}, least {min(masses):.3f}, "
            f"most {max(masses):.3f}; without a verdict {sum(row['verdict'] is None for row in rows)}"
        )
        for order in ("ab", "ba"):
            print(order, dict(Counter(str(row["verdict"]) for row in rows if row["order"] == order)))
        print(run("report", out).stdout.decode())


if __name__ == "__main__":
    main()
