"""The benchmark for the next GPU: every section runs on a CPU, and its entry of RESULTS.md is written by itself."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running import ROOT, execute

pytest.importorskip("torch")
BENCH = ROOT / "tests" / "bench"


def contents(text: str) -> tuple[list[str], list[str]]:
    return re.findall(r"^- \[(.*)\]\(#", text, re.MULTILINE), re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_a_run_adds_itself_to_the_results_as_the_newest_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setattr(sys, "argv", ["h200_train.py", "--out", "x y"])
    import h200_results

    about = {"section": "about", "card": "NVIDIA H200, 143771", "cores": 16, "host_gb": 128.0, "python": "3.11"}
    about |= dict.fromkeys(("torch", "transformers", "trl", "liger-kernel"), "1.0")
    place = tmp_path / "RESULTS.md"
    settings = SimpleNamespace(results=place, out=tmp_path)
    bench: Any = SimpleNamespace(results=[about], lines=["7b 12000 tok/s"], dry=False, settings=settings)
    for lines in (["7b 12000 tok/s"], ["7b 13000 tok/s"]):
        bench.lines = lines
        h200_results.record(bench)
    text = place.read_text()
    listed, headed = contents(text)
    assert listed == headed and headed[1].endswith("`vtools train` beside TRL on one NVIDIA H200")
    before = contents(h200_results.RESULTS.read_text())[1][1]
    assert text.index("13000") < text.index("12000") < text.index(f"## {before}")
    assert "NVIDIA H200, 143771, 16 cores" in text and "h200_train.py --out 'x y'" in text


def test_vicuna_is_priced_by_the_measured_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    import h200_results
    import h200_train

    (tmp_path / "7b").mkdir()
    (tmp_path / "7b" / "tokens.jsonl").write_text(json.dumps({"input_ids": [1] * 1000}) + "\n")
    said: list[str] = []
    bench: Any = SimpleNamespace(
        results=[{"section": "7b", "tokens_per_s": 12_500.0}], work=tmp_path, settings=SimpleNamespace(usd_hour=3.0),
        shape=h200_train.SHAPES.__getitem__, say=said.append,
    )  # fmt: skip
    h200_results.dollars(bench)
    # 375 million tokens at 12,500 a second are 30,000 seconds.
    assert "8.3 GPU-hours, $25.00 at $3.00 an hour (12500 tok/s, measured)" in said[0]
    hours = float(re.search(r"([\d.]+) GPU-hours", said[1])[1])  # type: ignore[index]
    assert hours / (30_000 / 3600) == pytest.approx(79.6 / 41.25, rel=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_section_runs_on_a_cpu(tmp_path: Path) -> None:
    done = execute(
        [sys.executable, str(BENCH / "h200_train.py"), "--dry-run", "--out", str(tmp_path / "out")], timeout=1800
    )
    assert done.returncode == 0, done.stdout.decode() + done.errors
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    ran = {row["section"] for row in rows if "skipped" not in row}
    assert ran >= {"attention", "1b", "stall", "7b", "preempt"} and not [row for row in rows if "error" in row]
    skipped = {row["section"] for row in rows if "skipped" in row}
    assert skipped <= {"1b-peers", "7b-peers"}  # where TRL is not installed
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    listed, headed = contents(text)
    assert listed == headed and "10 times SIGTERM: bit-equal" in text and "Vicuna-13B" in text and "planned" in text
