"""How close `judge` comes to the time that an unreliable server itself takes: 160 comparisons in both orders, -j 16.

    python tests/bench/judge_endpoint.py

A call takes the server 1 s; 10 % of the calls fail (429, 500, silence, torn bodies). The ideal is the time of all calls
at the server, a silent one counting --timeout 3, and the waits that it asks for, divided by 16.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from running import run
from unreliable import Unreliable, answers

JOBS, QUESTIONS, TIMEOUT = 16, 160, 3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for model in ("alpha", "beta"):
            Path(folder, f"{model}.jsonl").write_text(answers(model, QUESTIONS))
        for seed in range(3):
            with Unreliable(1.0, TIMEOUT, seed=seed) as server:
                began = time.monotonic()
                done = run(
                    "judge", "alpha.jsonl", "beta.jsonl", "--base-url", server.url, "-j", JOBS, "--timeout", TIMEOUT,
                    "-o", f"{seed}.jsonl", cwd=folder,
                )  # fmt: skip
                wall = time.monotonic() - began
                ideal = sum(server.busy) / JOBS
            assert done.returncode == 0, done.errors
            print(
                f"seed {seed}: {wall:.1f} s, ideal {ideal:.1f} s, {wall / ideal:.2f} x; {server.answered} answered, "
                f"failed {server.failed}"
            )


if __name__ == "__main__":
    main()
