"""What `judge --stop-when-decided` saves, and how often it says what all questions say: exactly, no simulation.

    python tests/bench/stop_when_decided.py

The blog's reviews by GPT-4 in every order of their 80 questions, and questions drawn at random, by win rate and share of
ties. `calls` is the mean share of the questions asked; `side`: not stopped on the side on which all questions are not;
`fixed`: decided as the usual 95 % interval of all questions decides; `covers`: the interval where it stops has the true
mean; `always`: all intervals have it, up to the last question.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from stopping_odds import replay, sample, states, whole

LEVEL, QUESTIONS = 0.95, 80
BLOG = {"Alpaca-13B and Vicuna-13B": (76, 1, 3), "ChatGPT and Vicuna-13B": (14, 22, 44)}  # b's wins, ties, losses
RATES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)
TIES = (0.0, 0.2, 0.4)


def main() -> None:
    said = states(LEVEL, QUESTIONS)
    print(f"{'':<32} calls  early   side  fixed covers always")
    for name, counts in BLOG.items():
        mean = (counts[0] + counts[1] / 2) / QUESTIONS
        show(f"{name}, {mean:.3f}", replay(said, QUESTIONS, whole(counts), mean))
    for rate in RATES:
        for ties in TIES:
            if ties / 2 <= min(rate, 1 - rate):
                show(f"win rate {rate:.2f}, ties {ties:.1f}", replay(said, QUESTIONS, sample(rate, ties), rate))


def show(name: str, found: tuple[float, ...]) -> None:
    print(f"{name:<32} {' '.join(f'{share:6.3f}' for share in found)}", flush=True)


if __name__ == "__main__":
    main()
