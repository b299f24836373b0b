"""A real model learns from real conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import VTOOLS, execute, good


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixty_steps_on_real_conversations_lower_the_loss_on_held_out_ones(
    smollm2: str, sharegpt: Path, tmp_path: Path
) -> None:
    vtools = " ".join(VTOOLS)
    shell = f"""
        {vtools} fetch {sharegpt} --rejects torn.jsonl -q | head -n 1500 > raw.jsonl || true
        {vtools} clean raw.jsonl --rejects dropped.jsonl -q |
        {vtools} split --tokenizer {smollm2} --max-tokens 384 --hold-out 4% --hold-out-file held.jsonl -q > train.jsonl
        head -n 24 held.jsonl > eval.jsonl
    """
    done = execute(["bash", "-eu", "-c", shell], cwd=tmp_path)
    assert done.returncode == 0, done.errors
    rows = good(
        "train", "--model", smollm2, "--data", "train.jsonl", "--eval", "eval.jsonl", "--eval-every", 20, "--out", "tuned",
        "--max-tokens", 384, "--batch", 2, "--max-steps", 60, "--lr", 1e-4, "--warmup", 6, "--rejects", "bad.jsonl",
        cwd=tmp_path, env={"OMP_NUM_THREADS": "2"}, timeout=1700,
    )  # fmt: skip
    held = [row["eval_loss"] for row in rows if "eval_loss" in row]
    print("held-out loss", held)
    assert len(held) == 4 and held[-1] < held[0] - 0.02
