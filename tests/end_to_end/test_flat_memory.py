"""clean and fetch | clean | split on many conversations: what comes out, and that memory does not grow with them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from running import command, environment, launched, used

STAGES = [["fetch", "-"], ["clean"], ["split", "--max-tokens", "2048", "--tokenizer"]]


def pipeline(data: Path, tokenizer: str, out: Path) -> list[int]:
    """Run the three stages as one pipe; the peak memory of each in bytes."""
    running, reports, source = [], [], data.open("rb")
    for stage in STAGES:
        last = stage[0] == "split"
        args = command(*stage, *([tokenizer] if last else []), "-q", "--rejects", f"{out}.{stage[0]}")
        sink = out.open("wb") if last else subprocess.PIPE
        reports.append(Path(f"{out}.{stage[0]}.used"))
        process = subprocess.Popen(launched(reports[-1], args), stdin=source, stdout=sink, env=environment())
        source.close()
        source = process.stdout
        running.append(process)
    assert [process.wait() for process in running] == [0, 0, 0]
    return [used(report)[1] for report in reports]


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
        print(f"{stage[0]}: {small >> 20} MiB for 2,000 conversations, {large >> 20} MiB for 20,000")
        assert large <= small * 1.1, f"{stage[0]}: {small} bytes for 2,000 conversations, {large} bytes for 20,000"


# Distinct conversations of some 400 bytes, one in four with an answer in HTML, one in fifty a duplicate.
GENERATOR = """
import sys
for n in range(int(sys.argv[1])):
    m = n - 1 if n % 50 == 49 else n
    words = f"The answer number {m} says {m * 7919 % 1000003} and then {m ^ 0x5bd1}. " * 3
    answer = f"<p>{words}</p><ul><li>one</li><li>two {m}</li></ul>" if m % 4 == 0 else words
    print('{"id": "c%d", "conversations": [{"from": "human", "value": "Question number %d, what is it?"}, '
          '{"from": "gpt", "value": "%s"}]}' % (n, m, answer))
"""


def clean_generated(folder: Path, records: int, *options: str, **env: str) -> tuple[str, int, int]:
    """A hash of what `vtools clean` makes of generated records, how many lines it is, and its peak RSS in bytes."""
    source = subprocess.Popen([sys.executable, "-c", GENERATOR, str(records)], stdout=subprocess.PIPE)
    report = folder / "report"
    cleaning = launched(report, command("clean", "-q", *options))
    process = subprocess.Popen(cleaning, stdin=source.stdout, stdout=subprocess.PIPE, env=environment(**env))
    source.stdout.close()
    digest, lines = hashlib.blake2b(), 0
    while chunk := process.stdout.read1(1 << 20):
        digest.update(chunk)
        lines += chunk.count(b"\n")
    assert (process.wait(), source.wait()) == (0, 0)
    return digest.hexdigest(), lines, used(report)[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_records_are_cleaned_in_150_megabytes_and_two_processes_write_the_same_bytes(tmp_path):
    one, lines, memory = clean_generated(tmp_path, 1_000_000)
    print(f"a million records: {memory / 1e6:.0f} MB")
    assert lines == 980_000
    assert memory <= 150e6
    assert clean_generated(tmp_path, 1_000_000, "-j", "2")[0] == one


@pytest.mark.slow
def test_any_hash_seed_gives_the_same_bytes(tmp_path):
    found = {clean_generated(tmp_path, 20_000, "-j", jobs, PYTHONHASHSEED=seed)[0] for jobs in "12" for seed in "01"}
    assert len(found) == 1
