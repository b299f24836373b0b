"""What identifies a model: all of its bytes, read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import running

from vtools.weights import model_digest

blake3 = pytest.importorskip("blake3").blake3


@pytest.fixture
def model(tmp_path: Path, cache: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for number in (1, 2):
        (folder / f"model-{number}.safetensors").write_bytes(bytes([number]) * 3_000_000)
    return folder


def test_any_byte_of_a_base_changes_its_digest_even_where_size_and_time_stay(model: Path) -> None:
    before = model_digest.digest(model)
    file = model / "model-1.safetensors"
    times = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"\7")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = model_digest.digest(model)
    (model / "config.json").write_text('{"tie_word_embeddings": true}')
    assert len({before, changed, model_digest.digest(model)}) == 3


def test_a_copy_of_a_base_elsewhere_is_the_same_base(model: Path, tmp_path: Path) -> None:
    before = model_digest.digest(model)
    assert model_digest.digest(model.rename(tmp_path / "elsewhere")) == before


def test_a_file_larger_than_a_window_has_the_digest_that_others_compute(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_digest, "WINDOW", 1 << 20)
    file = model / "model-1.safetensors"
    assert model_digest._of_file(file) == blake3(file.read_bytes()).hexdigest()


def test_several_processes_read_a_base_once_and_later_runs_not_at_all(model: Path, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from vtools.weights import model_digest
own = model_digest._of_file
def counted(file):
    with open({str(tmp_path / "read")!r}, "a") as stream:
        stream.write(file.name + "\\n")
    return own(file)
model_digest._of_file = counted
print(model_digest.digest(Path({str(model)!r})))
"""
    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    digests = {child.communicate()[0] for child in started}
    assert len(digests) == 1 and {child.returncode for child in started} == {0}
    read = (tmp_path / "read").read_text().split()
    assert sorted(read) == ["model-1.safetensors", "model-2.safetensors"]
    assert model_digest.digest(model).encode() in digests.pop()


def test_a_cache_that_cannot_be_written_only_costs_time(model: Path, tmp_path: Path, monkeypatch) -> None:
    before = model_digest.digest(model)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VTOOLS_CACHE", str(tmp_path / "file"))
    assert model_digest.digest(model) == before


@pytest.mark.slow
def test_another_base_under_the_same_name_is_refused_where_a_run_would_resume(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import tiny

    base = tiny.make(tmp_path / "base")
    data = tiny.write(tmp_path / "data.jsonl", tiny.conversations(8))
    arguments = ["--model", base, "--data", data, "--out", tmp_path / "out", "--batch", 4, "--max-steps", 2]
    running.good("train", *arguments, "--keep", 1)
    file = base / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1  # in the middle of a tensor
    file.write_bytes(raw)
    done = running.run("train", *arguments, "--keep", 1)
    assert done.returncode == 1 and "another run: --model was " in done.errors
    about = json.loads((tmp_path / "out" / "vtools.json").read_text())
    assert about["run"]["--model"] != model_digest.digest(base)
