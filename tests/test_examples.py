"""Every example that a tool's help shows runs as it is typed, in a folder that holds what it names."""

from __future__ import annotations

import gzip
import json
import os
import select
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import source_files
import tiny
import typer.main
from chats import jsonl
from conftest import DATA
from loopback import Reply, Request, Server, judge_reply
from running import ROOT, begun, execute, good, on_path

from vtools import cli
from vtools.files import crawl_state
from vtools.files.lock import lock

TORCH = ("train", "serve", "--model vicuna", "--model ./vicuna")


def examples() -> list:
    found = []
    for name, command in typer.main.get_command(cli.build()).commands.items():
        lines = [line.strip() for line in command.help.partition("Examples:")[2].splitlines() if line.strip()]
        assert len(lines) >= 2, f"{name} shows no examples"
        for line in lines:
            marks = [pytest.mark.slow] if any(word in line for word in TORCH) else []
            found.append(pytest.param(line, id=line, marks=marks))
    return found


def anywhere_reply(request: Request) -> Reply:
    """What the examples call example.org and api.openai.com."""
    if request.method == "POST" or request.path.endswith("/models"):
        return judge_reply(request)
    return Reply(jsonl(*tiny.conversations(3)))


@pytest.fixture(scope="module")
def anywhere():
    with Server(anywhere_reply) as server:
        yield server.url


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with every file and model that an example names."""
    folder = tmp_path_factory.mktemp("world")
    records = tiny.conversations(24)
    for name in ("raw", "clean", "train", "held", "chats"):
        tiny.write(folder / f"{name}.jsonl", records)
    (folder / "sharegpt.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    (folder / "dump.json").write_text(json.dumps(records))
    with zipfile.ZipFile(folder / "chatgpt-export.zip", "w") as export:
        update = {"update_time": 1_800_000_000}
        export.writestr("conversations.json", json.dumps([source_files.chatgpt(**update)]))
        export.writestr("user.json", '{"id": "u"}')
    (folder / "data").mkdir()
    tiny.write(folder / "data" / "chats.jsonl", records)
    (folder / "more").mkdir()
    with zipfile.ZipFile(folder / "more" / "export.zip", "w") as archive:
        archive.write(folder / "dump.json", "dump.json")
    (folder / "faq.csv").write_text("question,answer\nWhat is a reed?,A tall grass.\n")
    prices = {"gpu": {"a100": 1.1}, "model": {"gpt-4.1": {"in": 2, "out": 8}}}
    (folder / "prices.json").write_text(json.dumps(prices))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n')
    (folder / "list.txt").write_text("data/chats.jsonl\n")
    with crawl_state.opened(str(folder / "crawl.db")):
        pass
    questions = [{"id": f"q{n}", "category": "generic", "turns": [f"Question {n}?"]} for n in range(2)]
    for name in ("questions", "q"):
        tiny.write(folder / f"{name}.jsonl", questions)
    for name in ("chatgpt", "vicuna", "a", "b"):
        tiny.write(folder / f"{name}.jsonl", [{"id": f"q{n}", "model": name, "question": [f"Question {n}?"], "turns": [f"{name} {n}"]} for n in range(2)])  # fmt: skip
    verdicts = [{"id": f"q{n}", "category": "generic", "mode": "pair", "a": "x", "b": "y", "order": order, "judge": "j", "scores": [8, 7], "verdict": "a"} for n in range(2) for order in ("ab", "ba")]  # fmt: skip
    tiny.write(folder / "judgments.jsonl", verdicts)
    tiny.write(folder / "votes.jsonl", [{"id": "q1", "a": "x", "b": "y", "vote": "y"}])
    for source in ("question.jsonl", "review/review_gpt35_vicuna-13b.jsonl"):
        if (DATA / "vicuna-blog" / source).exists():
            shutil.copy(DATA / "vicuna-blog" / source, folder)
    tiny.make(folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())  # as many positions as Vicuna's preset wants
    (folder / "base" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    for name, seed in (("llama", 1), ("vicuna", 2)):
        tiny.make(folder / name, seed=seed)
    good("make-delta", "llama", "vicuna", "vicuna-delta", "-q", cwd=folder)
    return folder


@pytest.mark.parametrize("example", examples())
def test_an_example_of_the_help_runs(world, anywhere, tmp_path, example):
    folder = tmp_path / "folder"
    shutil.copytree(world, folder)
    for word in example.split():
        if word.endswith((".jsonl", ".json", ".gz")) and "review" in word and not (folder / word).exists():
            pytest.skip("the Vicuna blog's reviews are not here (set VTOOLS_TEST_DATA)")
    if example.startswith("vtools make-delta"):
        shutil.rmtree(folder / "vicuna-delta")
    if example.startswith("vtools apply-delta") and "--verify" not in example:
        shutil.rmtree(folder / "vicuna")
    if "| jq" in example and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    for place, here in {
        "https://example.org": anywhere,
        "https://api.openai.com/v1": f"{anywhere}/v1",
        "http://127.0.0.1:8000/v1": f"{anywhere}/v1",
        "hf:huggyllama/llama-7b": "llama",
        "huggyllama/llama-7b": "llama",
        "hf:lmsys/vicuna-7b-delta-v1.1": "vicuna-delta",
        "HuggingFaceTB/SmolLM2-135M-Instruct": "base",
    }.items():
        example = example.replace(place, here)
    env = {"PATH": on_path(tmp_path / "bin"), "OPENAI_API_KEY": "none"}
    env |= {"OPENAI_BASE_URL": f"{anywhere}/v1"} if "serve" not in example else {}
    command = ["bash", "-o", "pipefail", "-c", example]
    if "vtools serve" in example:
        with (
            lock(Path(os.environ["VTOOLS_CACHE"]) / "ports", wait=True),  # the examples name their ports
            begun(command, cwd=folder, env=env, stdin=subprocess.DEVNULL) as process,
        ):
            assert select.select([process.stdout], [], [], 120)[0]
            assert b"http://127.0.0.1:" in process.stdout.readline()
            if "chat" in example:
                assert process.wait(120) == 0, process.stderr.read()
        return
    done = execute(command, cwd=folder, env=env)
    assert done.returncode == 0, done.errors
    assert "Traceback" not in done.errors


def test_the_readme_shows_every_tool():
    text = (ROOT / "README.md").read_text()
    for name in cli.COMMANDS:
        assert f"vtools {name}" in text, name
