"""What one run of a command costs."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """Wall and CPU seconds, and peak memory in MB: CPU of the process and its children, memory of the largest."""

    wall: float
    cpu: float
    peak: float


def of(command: list[str], environment: dict[str, str] | None = None, cwd: Path | None = None) -> Cost:
    """Run a command without input. Raises CalledProcessError, with what it said, if it fails.

    The caller should be small: a child starts with the peak memory of the process that starts it.
    """
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, cwd=cwd,
            env=os.environ | (environment or {}),
        )  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            failed = subprocess.CalledProcessError(child.returncode, command, stderr=said.read().decode()[-2000:])
            failed.add_note(failed.stderr)
            raise failed
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
