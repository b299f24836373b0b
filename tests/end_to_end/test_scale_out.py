"""A corpus cleaned in shards beside the same corpus cleaned at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from running import ROOT, execute, measured, on_path, run

RECIPE = ROOT / "recipes" / "scale-out.sh"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(sharegpt: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The real file's conversations, of which some return at the end: word for word backwards, and a little changed."""
    pytest.importorskip("duckdb")
    pytest.importorskip("rensa")
    folder = tmp_path_factory.mktemp("corpus")
    done = run("fetch", sharegpt, "--rejects", folder / "torn.jsonl", "-o", folder / "raw.jsonl")
    assert done.returncode == 0, done.errors
    lines = (folder / "raw.jsonl").read_bytes().splitlines(keepends=True)
    return [*lines, *lines[300:0:-1], *(line.replace(b'"content":"', b'"content":"Well, ') for line in lines[:200])]


def shards(folder: Path, lines: list[bytes], number: int) -> list[Path]:
    size = -(-len(lines) // number)
    files = [folder / f"shard-{place}.jsonl" for place in range(number)]
    for place, file in enumerate(files):
        file.write_bytes(b"".join(lines[place * size : (place + 1) * size]))
    return files


@pytest.mark.timeout(1200)
def test_four_shards_give_the_bytes_of_one_machine_and_a_repeated_command_resumes(corpus, tmp_path):
    (tmp_path / "all.jsonl").write_bytes(b"".join(corpus))
    one = ["all.jsonl", "--near-duplicates", 0.8, "--rejects", "rejects.jsonl", "-o", "one.jsonl"]
    done = run("clean", *one, cwd=tmp_path)
    assert done.returncode == 0, done.errors
    command = ["bash", str(RECIPE), "out", *map(str, shards(tmp_path, corpus, 4))]
    env = {"NEAR": "0.8", "PATH": on_path(tmp_path / "bin")}
    out = tmp_path / "out"
    for damaged in ([], ["exact/decided", "done/00002.jsonl", "clean/00001.jsonl", "keys/00003.csv"]):
        for name in damaged:
            (out / name).unlink()
        done = execute(command, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.errors
        together = b"".join(file.read_bytes() for file in sorted((out / "done").glob("*.jsonl")))
        assert together == (tmp_path / "one.jsonl").read_bytes()
    rejected = (row["reason"] for row in map(json.loads, _lines(out / "rejects")))
    expected = (json.loads(line)["reason"] for line in (tmp_path / "rejects.jsonl").open())
    assert sorted(rejected) == sorted(expected)


def test_gnu_parallel_over_hosts_gives_the_same_bytes(corpus, tmp_path):
    if not shutil.which("parallel"):
        pytest.skip("no GNU parallel here: apt install parallel")
    files = [str(file) for file in shards(tmp_path, [*corpus[:900], *corpus[-900:]], 4)]
    together = []
    for hosts in ("", "2/:"):  # ":" is this machine, without ssh
        env = {"NEAR": "0.8", "HOSTS": hosts, "PATH": on_path(tmp_path / "bin"), "HOME": str(tmp_path)}
        done = execute(["bash", str(RECIPE), f"out{hosts[:1]}", *files], cwd=tmp_path, env=env)
        assert done.returncode == 0, done.errors
        together.append([file.read_bytes() for file in sorted((tmp_path / f"out{hosts[:1]}" / "done").glob("*.jsonl"))])
    assert len(together[0]) == 4 and together[0] == together[1]


def test_the_memory_of_a_shard_does_not_grow_with_it(corpus, tmp_path):
    env, peaks = {"NEAR": "0.8", "PATH": on_path(tmp_path / "bin")}, {}
    for number in (1_000, 10_000):
        (tmp_path / f"{number}.jsonl").write_bytes(b"".join(corpus[:number]))
        for step in ("clean", "sketch", "keep"):
            part = ["part", step, str(tmp_path / f"out-{number}"), "00000", str(tmp_path / f"{number}.jsonl")]
            done, _, peaks[number, step] = measured(["bash", str(RECIPE), *part], env=env)
            assert done.returncode == 0, done.errors
    print(peaks)
    for step in ("clean", "sketch", "keep"):
        assert peaks[10_000, step] < 1.1 * peaks[1_000, step]


def _lines(folder: Path) -> Iterable[str]:
    for file in sorted(folder.iterdir()):
        yield from file.open()
