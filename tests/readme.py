"""The README's code blocks: what a reader is told to type, and what is shown to come of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from running import ROOT

README = (ROOT / "README.md").read_text()
# What only the folder of a finished quickstart has.
_AFTER_QUICKSTART = ("tuned", " delta ", "mix.jsonl", "answers-base.jsonl", "VTOOLS_MODEL")


class Command(NamedTuple):
    """A command of a block, and the output that is shown for it (none in a block of kind `sh`)."""

    kind: str
    text: str
    shown: str

    @property
    def after_quickstart(self) -> bool:
        """Whether it needs the folder of a finished quickstart."""
        return "$BLOG" not in self.text and any(word in self.text for word in _AFTER_QUICKSTART)


def commands() -> list[Command]:
    """The commands of the README's blocks: `console` shows prompts and outputs, `sh` is commands alone."""
    found = []
    for kind, text in re.findall(r"^```(console|sh)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        if kind == "sh":
            found.append(Command(kind, text, ""))
            continue
        before, *parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
        assert not before, f"output before the first prompt: {before}"
        found += [Command(kind, *pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return found


def run(command: Command, folder: Path, env: dict[str, str]) -> None:
    """Type a command, and compare what is shown for it; "…" stands for anything."""
    if re.search(r"^vtools serve .*--port \d+$", command.text):
        _serve(command, folder, env)
        return
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.text],
        cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{command.text}\n{done.stdout}"
    if command.shown:
        assert re.fullmatch(pattern(command.shown), done.stdout, re.DOTALL), f"{command.text}\n{done.stdout}"


def pattern(shown: str) -> str:
    """A pattern for an output as the README shows it."""
    return ".*".join(map(re.escape, shown.split("…")))


def _serve(command: Command, folder: Path, env: dict[str, str]) -> None:
    """Start a server on any free port, and compare its first lines."""
    text = "exec " + re.sub(r"--port \d+", "--port 0", command.text)
    process = subprocess.Popen(["bash", "-c", text], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        for line in command.shown.splitlines():
            assert re.fullmatch(re.sub(r":\d{4}/", r":\\d+/", pattern(line)), process.stdout.readline().rstrip("\n"))
    finally:
        process.terminate()
        assert process.wait(60) in (0, -15)
        process.stdout.close()
