"""Folders on file systems without locks: a warning, and the work goes on."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import tiny
from running import ROOT, python, run

# What NFS without its lock service and Lustre without `flock` answer; no such file system can be mounted here.
UNLOCKED = """
import errno, fcntl, os
def flock(handle, operation):
    raise OSError(errno.{0}, os.strerror(errno.{0}))
fcntl.flock = flock
"""
TWICE = """
import sys
from vtools.files.lock import lock
for _ in range(2):
    with lock(sys.argv[1]):
        print("working")
"""


@pytest.mark.parametrize("answer", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_warned_of_once_and_used(answer: str, tmp_path: Path) -> None:
    done = python(UNLOCKED.format(answer) + TWICE, tmp_path / "out")
    assert done.returncode == 0 and done.stdout == b"working\n" * 2
    assert done.errors.count("\n") == 1 and f"{tmp_path / 'out'}: this file system has no locks" in done.errors


def test_another_error_of_a_lock_is_not_taken_for_that(tmp_path: Path) -> None:
    done = python(UNLOCKED.format("EIO") + TWICE, tmp_path / "out")
    assert done.returncode == 1 and f"[Errno {errno.EIO}]" in done.errors


def test_a_model_can_be_trained_on_a_file_system_without_locks(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "sitecustomize.py").write_text(UNLOCKED.format("ENOLCK"))
    base, data = tiny.make(tmp_path / "base"), tiny.write(tmp_path / "data.jsonl", tiny.conversations(4))
    cache = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "VTOOLS_CACHE": str(tmp_path / "cache")}
    options = ["--batch", 2, "--max-steps", 1, "--warmup", 0]
    done = run("train", "--model", base, "--data", data, "--out", tmp_path / "out", *options, env=cache)
    assert done.returncode == 0, done.errors
    assert (tmp_path / "out" / "model.safetensors").exists() and "has no locks" in done.errors
