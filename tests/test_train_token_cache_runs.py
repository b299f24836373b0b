"""The token cache of `vtools train` in runs side by side, killed or starved: an entry is whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import begun, wait_until
from tiny import conversations, write
from token_caches import contents, entries, mixed

Start = Callable[..., subprocess.Popen]

# `token_cache.read` as a process of its own: with a template as slow as asked, a note of every rendering, and a place to die.
PROGRAM = """
import json, os, signal, sys, time
from vtools import process
from vtools.files import atomic
from vtools.models import template
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.train import token_cache

folder, file, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
slow, log, die_at = options.pop("slow", 0), options.pop("log", os.devnull), options.pop("die_at", None)
render = template.Template.render

def noted(self, messages, context=0):
    with open(log, "a") as notes:
        notes.write("x")
    time.sleep(slow)
    return render(self, messages, context)

template.Template.render = noted
steps = 0

def deadly(function):
    def wrapped(*arguments, **more):
        global steps
        steps += 1
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **more)
    return wrapped

if die_at:
    atomic.sync, os.replace = deadly(atomic.sync), deadly(os.replace)

def main():
    chosen = load_template(None, load_tokenizer(folder))
    options.setdefault("max_tokens", 512)
    options.setdefault("overlong", "truncate")
    corpus = token_cache.read([file], chosen, options.pop("max_tokens"), options.pop("overlong"), **options)
    print(json.dumps({"digest": corpus.digest, "conversations": len(corpus), "folder": str(corpus.folder)}))

process.command("train", main)()
"""


@pytest.fixture
def start(eot: str) -> Iterator[Start]:
    """Start that program on a file, or on `-`; whatever still runs at the end of the test is killed."""
    with contextlib.ExitStack() as stack:

        def run(
            file: str | Path, *, stdin: Any = subprocess.DEVNULL, limit: int = 0, **options: Any
        ) -> subprocess.Popen:
            limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))} if limit else {}
            program = [sys.executable, "-c", PROGRAM, eot, str(file), json.dumps(options)]
            return stack.enter_context(begun(program, stdin=stdin, **limited))

        yield run


def ended(running: subprocess.Popen[bytes], given: bytes | None = None) -> tuple[int, Any, str]:
    """The exit code, the line on stdout and the text on stderr."""
    stdout, stderr = running.communicate(given, timeout=120)
    return running.returncode, json.loads(stdout) if stdout else None, stderr.decode()


def building(running: subprocess.Popen[bytes], cache: Path) -> subprocess.Popen[bytes]:
    """Wait until it has begun to build its entry."""
    wait_until(lambda: list(cache.glob(".*.part/ids")) or running.poll() is not None)
    assert running.poll() is None, running.communicate()
    return running


def test_two_runs_at_a_time_on_the_same_data_tokenise_it_once(start: Start, tmp_path: Path, cache: Path) -> None:
    path, log = write(tmp_path / "chats.jsonl", conversations(60)), tmp_path / "log"
    first = building(start(path, slow=0.01, log=str(log)), cache)
    first.send_signal(signal.SIGSTOP)
    second = start(path, log=str(log))
    assert second.stderr is not None and b"waiting for another run" in second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    (code, row, _), (other_code, other_row, _) = ended(first), ended(second)
    assert code == other_code == 0 and row == other_row
    assert len(log.read_text()) == 60


def test_standard_input_and_a_file_are_the_same_data_in_any_number_of_processes(
    start: Start, tmp_path: Path, cache: Path
) -> None:
    path = mixed(tmp_path, 300)
    options = {"rejects": str(tmp_path / "rejects.jsonl")}
    seen = []
    with open(path, "rb") as stream:
        stream.readline()
        offset = stream.tell()
    for jobs in (1, 2):
        for way in ("file", "pipe", "redirected"):
            shutil.rmtree(cache, ignore_errors=True)
            with open(path, "rb") as stream:
                stdin = {"file": subprocess.DEVNULL, "pipe": subprocess.PIPE, "redirected": stream}[way]
                running = start(path if way == "file" else "-", stdin=stdin, jobs=jobs, **options)
                code, row, said = ended(running, path.read_bytes() if way == "pipe" else None)
            assert code == 0 and "305 in, 300 out, 5 rejected" in said, said
            assert os.listdir(cache / row["folder"]) and not [p for p in cache.iterdir() if p.name.endswith(".part")]
            seen.append((row["digest"], contents(Path(row["folder"]))))
    assert all(one == seen[0] for one in seen)
    with open(path, "rb") as stream:  # the rest of an input that another program has begun
        os.lseek(stream.fileno(), offset, os.SEEK_SET)
        code, row, _ = ended(start("-", stdin=stream, **options))
    assert code == 0 and row["conversations"] == 299


# Whole or not at all


def test_a_run_killed_while_it_tokenises_leaves_nothing_that_counts_and_a_rerun_gives_the_same_bytes(
    start: Start, tmp_path: Path, cache: Path
) -> None:
    path = write(tmp_path / "chats.jsonl", conversations(400))
    code, row, _ = ended(start(path))
    whole = contents(Path(row["folder"]))
    shutil.rmtree(cache)
    source = random.Random(1)
    for jobs in (1, 2, 1):
        running = building(start(path, slow=0.01, jobs=jobs), cache)
        time.sleep(source.uniform(0, 1))
        running.kill()
        assert ended(running)[0] == -signal.SIGKILL
        assert entries(cache) == [] and list(cache.glob(".*.part"))
    code, again, _ = ended(start(path))
    assert code == 0 and again == row and contents(Path(row["folder"])) == whole
    assert not list(cache.glob(".*.part"))


def test_a_run_killed_at_any_step_of_its_finish_leaves_an_entry_or_none(
    start: Start, tmp_path: Path, cache: Path
) -> None:
    path = write(tmp_path / "chats.jsonl", conversations(10))
    code, row, _ = ended(start(path))
    folder = Path(row["folder"])
    whole = contents(folder)
    for step in range(1, 20):
        shutil.rmtree(folder)
        code, _, _ = ended(start(path, die_at=step))
        assert code in (0, -signal.SIGKILL)
        assert not folder.exists() or contents(folder) == whole
        if code == 0:
            break
        log = tmp_path / f"log{step}"
        complete = folder.exists()
        assert ended(start(path, log=str(log)))[:2] == (0, row) and contents(folder) == whole
        assert log.exists() != complete
    assert step > 8 and code == 0


def test_a_run_ended_by_a_signal_cleans_up(start: Start, tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "chats.jsonl", conversations(400))
    for jobs in (1, 2):
        running = building(start(path, slow=0.01, jobs=jobs), cache)
        running.terminate()
        assert ended(running)[0] == -signal.SIGTERM
        assert [path.name for path in cache.iterdir()] == [".locks"]


def test_an_input_that_grows_while_it_is_read_is_refused(start: Start, tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "chats.jsonl", conversations(200))
    running = building(start(path, slow=0.01), cache)
    with open(path, "a") as stream:
        stream.write(json.dumps(conversations(1)[0]) + "\n")
    code, _, said = ended(running)
    assert code == 1 and "chats.jsonl: changed while it was being read" in said and entries(cache) == []


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_a_full_disk_ends_in_one_line_that_says_what_to_do(way: str, start: Start, tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "chats.jsonl", conversations(4000))
    running = start(path if way == "file" else "-", stdin=subprocess.PIPE, limit=100_000)
    code, row, said = ended(running, path.read_bytes() if way == "pipe" else b"")
    assert code == 1 and not row and "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"vtools train: {cache}: ") and "VTOOLS_CACHE" in said
    assert [path.name for path in cache.iterdir()] == ([".locks"] if way == "file" else [])


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_a_cache_folder_that_cannot_be_made_is_named(way: str, start: Start, tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "chats.jsonl", conversations(4))
    cache.parent.write_text("a file stands there")
    running = start(path if way == "file" else "-", stdin=subprocess.PIPE)
    code, _, said = ended(running, path.read_bytes() if way == "pipe" else None)
    assert code == 1 and str(cache) in said and "VTOOLS_CACHE" in said and "Traceback" not in said
