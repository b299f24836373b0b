"""CPU of starting a filter, beside the interpreter and the CLI library alone: python tests/bench/startup.py

Prints the median of 20 runs of each, in turn, and the ratio to `python -c "import typer"`, which is the floor.
"""

from __future__ import annotations

import statistics
import sys

import cost

RUNS = 20
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    'python -c "import typer"': [sys.executable, "-c", "import typer"],
    "vtools --help": [sys.executable, "-m", "vtools", "--help"],
    "vtools clean --help": [sys.executable, "-m", "vtools", "clean", "--help"],
    "vtools clean </dev/null": [sys.executable, "-m", "vtools", "clean"],
}


seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
for _ in range(RUNS):
    for name, command in COMMANDS.items():
        seconds[name].append(cost.of(command).cpu)
floor = statistics.median(seconds['python -c "import typer"'])
for name, runs in seconds.items():
    middle = statistics.median(runs)
    print(f"{name:<26} median {1000 * middle:6.1f} ms  min {1000 * min(runs):6.1f} ms  {middle / floor:5.2f} x typer")
