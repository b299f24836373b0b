"""fetch | clean | split on real conversations: what comes out, and that memory does not grow with the input."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, VTOOLS

STAGES = [["fetch", "-"], ["clean"], ["split", "--max-tokens", "2048", "--tokenizer"]]


def pipeline(data: Path, tokenizer: str, out: Path) -> list[int]:
    """Run the three stages as one pipe; the peak RSS of each in KiB."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running, source = [], data.open("rb")
    for stage in STAGES:
        last = stage[0] == "split"
        args = [*VTOOLS, *stage, *([tokenizer] if last else []), "-q", "--rejects", f"{out}.{stage[0]}"]
        sink = out.open("wb") if last else subprocess.PIPE
        process = subprocess.Popen(args, stdin=source, stdout=sink, env=env)
        source.close()
        source = process.stdout
        running.append(process)
    peaks = []
    for process in running:
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss)
    return peaks


@pytest.mark.slow
def test_ten_times_the_input_takes_no_more_memory(sharegpt, llama, tmp_path):
    chunk = sharegpt.read_bytes()[:16_000_000].decode()
    records = []
    for text in chunk.split("\n  },\n  {")[1:-1][:2000]:
        records.append(json.loads("{" + text + "}"))
    assert len(records) == 2000
    for name, times in (("once", 1), ("ten", 10)):
        with open(tmp_path / name, "w") as file:
            for turn in range(times):
                for record in records:
                    turns = [{"from": t["from"], "value": f"{t['value']} ({turn})"} for t in record["conversations"]]
                    file.write(json.dumps({"id": f"{record['id']}-{turn}", "conversations": turns}) + "\n")
    once = pipeline(tmp_path / "once", llama, tmp_path / "out1")
    ten = pipeline(tmp_path / "ten", llama, tmp_path / "out10")
    kept = [sum(1 for _ in (tmp_path / name).open("rb")) for name in ("out1", "out10")]
    assert kept[0] > 1500
    assert kept[1] == pytest.approx(10 * kept[0], rel=0.01)
    for stage, small, large in zip(STAGES, once, ten, strict=True):
        print(f"{stage[0]}: {small >> 10} MiB for 2,000 conversations, {large >> 10} MiB for 20,000")
        assert large <= small * 1.1, f"{stage[0]}: {small} KiB for 2,000 conversations, {large} KiB for 20,000"
