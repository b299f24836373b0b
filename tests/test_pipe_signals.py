"""The pipe contract: readers that go away, signals, kills and two runs at a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from chats import jsonl
from piping import read_line, record
from running import begun, command, python, wait_until


def test_a_reader_that_goes_away_kills_the_filter_quietly(start, tool, tmp_path):
    (tmp_path / "many.jsonl").write_bytes(jsonl(*[record(number, 400) for number in range(3000)]))
    process = start(*tool, "many.jsonl")
    os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    assert process.wait(30) == -signal.SIGPIPE
    assert process.stderr.read() == b""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_filter_that_waits_for_input_notices_that_its_reader_has_gone(start, tool, jobs):
    if jobs == "2" and tool[0] == "fetch":
        pytest.skip("the jobs of fetch are downloads")
    process = start(*tool, *(["-j", jobs] if jobs == "2" else []))
    process.stdin.write(jsonl(record(1)))
    process.stdin.flush()
    read_line(process.stdout)
    process.stdout.close()
    assert process.wait(30) == -signal.SIGPIPE
    assert process.stderr.read() == b""


def test_a_filter_that_has_stopped_writing_notices_that_its_reader_has_gone(start):
    process = start("clean")  # everything after the first is a duplicate
    one = jsonl(record(1))
    process.stdin.write(one)
    process.stdin.flush()
    read_line(process.stdout)
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        wait_until(lambda: process.stdin.write(one) and process.stdin.flush())
    assert process.wait(30) == -signal.SIGPIPE


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_filter_by_that_signal_and_leaves_no_litter(start, tool, tmp_path, signum):
    (tmp_path / "result.jsonl").write_text("old\n")
    process = start(*tool, "-o", "result.jsonl")
    process.stdin.write(jsonl(record(1)))
    process.stdin.flush()
    wait_until((tmp_path / ".result.jsonl.part").exists)
    process.send_signal(signum)
    assert process.wait(30) == -signum
    assert process.stderr.read() == b""
    assert (tmp_path / "result.jsonl").read_text() == "old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.jsonl"]


AT_EVERY_STEP = """
import contextlib, os, orjson, pathlib, signal, sys
from vtools import process
from vtools.records import jsonl

def write(step):
    def trace(frame, event, arg):
        nonlocal step
        step -= event in ("call", "line")
        if step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return trace
    sys.settrace(trace)
    with jsonl.output("result") as out:
        out.write("new")
    sys.settrace(None)

def enter(manager):
    stream = next(manager.gen)
    os.kill(os.getpid(), signal.SIGTERM)
    return stream

def write_but_enter(step):
    contextlib._GeneratorContextManager.__enter__ = enter
    write(0)

for step in range(10_000):
    pathlib.Path("result").write_text("old")
    child = os.fork()
    if not child:
        process.command("test", write if step else write_but_enter)(step)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, pathlib.Path("result").read_text().strip(), *os.listdir("."))
    if code == 0:
        break
"""


def test_a_signal_at_any_step_of_writing_a_file_leaves_the_old_or_the_new_one_and_nothing_else(tmp_path):
    done = python(AT_EVERY_STEP, cwd=tmp_path)
    *ended, finished = done.stdout.splitlines()
    assert (done.errors, finished) == ("", b'0 "new" result')
    assert len(ended) > 200 and set(ended) == {b"-15 old result", b'-15 "new" result'}


def test_ctrl_c_ends_the_shell_loop_around_a_filter(tool, tmp_path):
    """bash ends a loop only if its command died of SIGINT; an exit code of 130 would let it go on."""
    script = f"for i in 1 2 3; do echo round >> rounds; {' '.join(command(*tool))} -o result.jsonl < fifo; done"
    os.mkfifo(tmp_path / "fifo")
    with begun(["bash", "-c", script], cwd=tmp_path) as shell, open(tmp_path / "fifo", "wb") as fifo:
        fifo.write(jsonl(record(1)))
        fifo.flush()
        wait_until((tmp_path / ".result.jsonl.part").exists)  # the filter is inside its loop
        os.killpg(shell.pid, signal.SIGINT)
        shell.wait(30)
    assert (tmp_path / "rounds").read_text() == "round\n"


def test_killed_with_9_a_filter_leaves_no_worker_and_the_rerun_takes_over(start, vtools, tool, tmp_path):
    jobs = ["-j", "2"] if tool[0] != "fetch" else []
    process = start(*tool, *jobs, "-o", "result.jsonl", "--rejects", "rejects.jsonl")
    process.stdin.write(jsonl(record(1)))
    process.stdin.flush()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: (tmp_path / ".result.jsonl.part").exists() and len(children.read_text().split()) == len(jobs))
    workers = [Path(f"/proc/{child}") for child in children.read_text().split()]
    process.kill()
    process.wait()
    wait_until(lambda: not any(worker.exists() for worker in workers))
    assert not (tmp_path / "result.jsonl").exists()
    done = vtools(*tool, *jobs, "-o", "result.jsonl", stdin=jsonl(record(1)))
    assert done.returncode == 0
    assert json.loads((tmp_path / "result.jsonl").read_text())["id"] == "c1"
    assert not (tmp_path / ".result.jsonl.part").exists()


def test_two_runs_on_one_output_do_not_mix(start, vtools, tool, tmp_path):
    first = start(*tool, "-o", "result.jsonl")
    first.stdin.write(jsonl(record(1)))
    first.stdin.flush()
    wait_until((tmp_path / ".result.jsonl.part").exists)
    second = vtools(*tool, "-o", "result.jsonl", stdin=jsonl(record(2)))
    assert second.returncode == 75
    first.stdin.close()
    assert first.wait(30) == 0
    assert json.loads((tmp_path / "result.jsonl").read_text())["id"] == "c1"
