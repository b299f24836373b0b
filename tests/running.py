"""`vtools` as its users meet it, a process: run to its end, well or badly, under way, measured, on a terminal."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
VTOOLS = [sys.executable, "-m", "vtools"]


class Result(subprocess.CompletedProcess):
    """A finished process whose stdout can be read as records, and its stderr as text."""

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def errors(self) -> str:
        return self.stderr.decode()


def environment(**extra: str) -> dict[str, str]:
    """An environment in which this tree's package is found, one thread does the work and no GPU is seen."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def command(*arguments: object) -> list[str]:
    """The command line of `vtools ARGUMENTS`."""
    return [*VTOOLS, *map(str, arguments)]


def execute(
    command: list[str], *, stdin: bytes | str = b"", env: dict[str, str] | None = None, **options: Any
) -> Result:
    """Any command run to its end, with options of `subprocess.run`; `env` adds to the environment."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 240, **options}
    done = subprocess.run(command, input=data, env=environment(**(env or {})), **options)
    return Result(done.args, done.returncode, done.stdout, done.stderr)


def run(*arguments: object, **options: Any) -> Result:
    """`vtools ARGUMENTS` run to its end."""
    return execute(command(*arguments), **options)


def with_options(arguments: Iterable[object], *more: object) -> list[object]:
    """Arguments with more options and their values, each in place of the same option among them."""
    kept = list(arguments)
    for option in more[::2]:
        if option in kept:
            place = kept.index(option)
            del kept[place : place + 2]
    return [*kept, *more]


def good(*arguments: object, **options: Any) -> list[dict]:
    """The records that `vtools ARGUMENTS`, which must end well, has printed."""
    done = run(*arguments, **options)
    assert done.returncode == 0, done.errors
    return done.records


def bad(*arguments: object, code: int = 1, **options: Any) -> str:
    """The one line of stderr in which `vtools ARGUMENTS` says why it ends with this code."""
    done = run(*arguments, **options)
    assert done.returncode == code, (done.stdout, done.errors)
    assert "Traceback" not in done.errors
    assert done.errors.count("\n") == 1, done.errors
    return done.errors


def on_path(folder: Path) -> str:
    """A PATH on which `vtools`, put into this new folder, is this tree's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vtools").write_text(f'#!/bin/sh\nexec {" ".join(VTOOLS)} "$@"\n')
    (folder / "vtools").chmod(0o755)
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def python(code: str, *arguments: object, **options: Any) -> Result:
    """A Python program, which finds this tree's package, run to its end."""
    return execute([sys.executable, "-c", code, *map(str, arguments)], **options)


@contextlib.contextmanager
def begun(command: list[str], *, env: dict[str, str] | None = None, **options: Any) -> Iterator[subprocess.Popen]:
    """Any command under way, its output in pipes, in a session of its own, whose processes are killed at the end."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {**pipes, "start_new_session": True, **options}
    process = subprocess.Popen(command, env=environment(**(env or {})), **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def start(*arguments: object, **options: Any) -> contextlib.AbstractContextManager[subprocess.Popen]:
    """`vtools ARGUMENTS` under way."""
    return begun(command(*arguments), **options)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that has to happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {inspect.getsource(condition).strip()}"
        time.sleep(0.01)


# What a process and its children used

LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, file=open(sys.argv[1], "w"))
sys.exit(code)
"""
# Python for a process's own peak memory in bytes. Its ru_maxrss begins at the peak of the process that started it.
PEAK = "int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]) * 1024"


def launched(report: Path, command: list[str]) -> list[str]:
    """A command line that runs `command` and then writes to `report` what it and its children used, for `used`.

    A small process starts it, as Linux counts for a child at least the memory of the process that forked it, and
    pytest's is large.
    """
    return [sys.executable, "-S", "-c", LAUNCHER, str(report), *command]


def used(report: Path) -> tuple[float, int]:
    """CPU seconds, and the peak memory of the largest process in bytes."""
    seconds, memory = report.read_text().split()
    return float(seconds), int(memory)


def measured(command: list[str], **options: Any) -> tuple[Result, float, int]:
    """A command run to its end with the options of `execute`, its CPU seconds and its peak memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        return execute(launched(report, command), **options), *used(report)


def peak(*arguments: object, **options: Any) -> int:
    """The peak memory of `vtools ARGUMENTS`, which must end well, in bytes."""
    done, _, memory = measured(command(*arguments), **options)
    assert done.returncode == 0, done.errors
    return memory


def on_a_terminal(command: list[str], folder: Path, data: bytes = b"", **extra: str) -> str:
    """What a command that must end well shows when its stderr is a terminal of 100 columns; `data` is its stdin."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 100))
    with tempfile.TemporaryFile() as stdin:
        stdin.write(data)
        stdin.seek(0)
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=slave, cwd=folder, env=environment(TERM="xterm", **extra)
        )  # fmt: skip
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):  # raised where the last process that holds the terminal has ended
        while chunk := os.read(master, 4096):
            seen += chunk
    os.close(master)
    assert process.wait(30) == 0
    return seen.decode()


def on_a_disk_of(size: str, command: list[str], folder: Path) -> Result:
    """A command run with a new disk of this size at folder/small; on stderr follows the list of what it has left there."""
    script = 'mount -t tmpfs -o size=$1 none small && shift && ("$@"; code=$?; ls -A small >&2; exit $code)'
    (folder / "small").mkdir(exist_ok=True)
    inside = ["unshare", "-rm", "sh", "-c", script, "sh", size]
    if not shutil.which("unshare") or execute([*inside, "true"], cwd=folder).returncode:
        pytest.skip("no tmpfs can be mounted here")
    return execute([*inside, *command], cwd=folder)


# Processes of a session


def processes_of(session: int) -> list[int]:
    """Living processes of a session, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(path.parent.name))
    return sorted(found)


def ranks_of(session: int) -> list[int]:
    """The processes of a session that train, not the one that launched them."""
    found = []
    for pid in processes_of(session):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found
