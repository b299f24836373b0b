"""A tiny random Llama with its own tokenizer and conversations for it, made on the spot; processes looked at."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEXT = "the cat sat on a mat and saw one red bird that flew over seven green hills to find some cold rain"
WORDS = TEXT.split()
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' }}{{ message.role }}{{ '\\n' }}{{ message.content }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make(folder: Path, tied: bool = True, seed: int = 0, dropout: float = 0.0) -> Path:
    """Save a two-layer model with grouped queries, its tokenizer and a chat template."""
    import tokenizers
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([TEXT] * 4, trainer)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        attention_dropout=dropout,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def conversations(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of one to three rounds and of very different lengths."""
    source = random.Random(seed)
    records = []
    for index in range(number):
        messages = []
        for _ in range(source.randint(1, 3)):
            for role in ("user", "assistant"):
                text = " ".join(source.choices(WORDS, k=source.randint(1, 20)))
                messages.append({"role": role, "content": text})
        about = {"kind": "sharegpt" if index % 2 else "own", "license": "none"}
        records.append({"id": f"chat{index}", "messages": messages, "source": about})
    return records


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """Save records as JSONL."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def command(*arguments: object) -> list[str]:
    """The command line of `vtools train`."""
    return [sys.executable, "-m", "vtools", "train", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """An environment in which that command finds this tree's package, and one thread does the work."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, file=open(sys.argv[1], "w"))
sys.exit(code)
"""


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


# Python for a process's own peak memory in bytes. Its ru_maxrss begins at the peak of the process that started it.
PEAK = "int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]) * 1024"


def measured(command: list[str], **options: Any) -> tuple[subprocess.CompletedProcess[Any], float, int]:
    """A command run to its end with the options of `subprocess.run`, its CPU seconds and its peak memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        options = {"capture_output": True, "env": environment(), "timeout": 300, **options}
        done = subprocess.run(launched(report, command), **options)
        return done, *used(report)


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


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a finished model and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


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


def all_gone(session: int) -> bool:
    """Whether no process of a session is left, at once or after the moment that the kernel takes to reap them."""
    for _ in range(200):
        if not processes_of(session):
            return True
        time.sleep(0.05)
    return False
