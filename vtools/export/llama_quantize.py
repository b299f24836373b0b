"""llama.cpp's own program for K-quants, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from vtools import process
from vtools.process import Failure


def find() -> str | None:
    """The program on the PATH."""
    return shutil.which("llama-quantize")


def run(program: str, source: Path, target: Path, kind: str, jobs: int) -> None:
    """Quantise a GGUF file; what the program said is shown if it fails. Raises Failure."""
    parent = os.getpid()
    done = subprocess.run(
        [program, str(source), str(target), kind.upper(), str(jobs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: process.die_with_parent(parent),
    )
    if done.returncode:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        raise Failure(f"{program} ended with {done.returncode} (above is what it said)")
