"""Every example that a tool's help shows runs as it is typed, in a folder that holds what it names."""

from __future__ import annotations

import gzip
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
import typer.main
from conftest import DATA, ROOT

from vtools import cli

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


class Anywhere(BaseHTTPRequestHandler):
    """What the examples call example.org and api.openai.com."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body: bytes):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path.endswith("/models"):
            self.answer(json.dumps({"object": "list", "data": [{"id": "gpt-4.1", "object": "model"}]}).encode())
        else:
            self.answer(b"".join(json.dumps(record).encode() + b"\n" for record in tiny.conversations(3)))

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "8 7\nThe first answer is a little better."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
        self.answer(json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "gpt-4.1", "choices": [choice], "usage": usage}).encode())  # fmt: skip


@pytest.fixture(scope="module")
def anywhere():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Anywhere)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with every file and model that an example names."""
    folder = tmp_path_factory.mktemp("world")
    records = tiny.conversations(24)
    for name in ("raw", "clean", "train", "held", "chats"):
        tiny.write(folder / f"{name}.jsonl", records)
    (folder / "sharegpt.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    (folder / "dump.json").write_text(json.dumps(records))
    prices = {"gpu": {"a100": 1.1}, "model": {"gpt-4.1": {"in": 2, "out": 8}}}
    (folder / "prices.json").write_text(json.dumps(prices))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n')
    questions = [{"id": f"q{n}", "category": "generic", "turns": [f"Question {n}?"]} for n in range(2)]
    for name in ("questions", "q"):
        tiny.write(folder / f"{name}.jsonl", questions)
    for name in ("chatgpt", "vicuna", "a", "b"):
        tiny.write(folder / f"{name}.jsonl", [{"id": f"q{n}", "model": name, "question": [f"Question {n}?"], "turns": [f"{name} {n}"]} for n in range(2)])  # fmt: skip
    verdicts = [{"id": f"q{n}", "category": "generic", "mode": "pair", "a": "x", "b": "y", "order": order, "judge": "j", "scores": [8, 7], "verdict": "a"} for n in range(2) for order in ("ab", "ba")]  # fmt: skip
    tiny.write(folder / "judgments.jsonl", verdicts)
    for source in ("question.jsonl", "review/review_gpt35_vicuna-13b.jsonl"):
        if (DATA / "vicuna-blog" / source).exists():
            shutil.copy(DATA / "vicuna-blog" / source, folder)
    tiny.make(folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())  # as many positions as Vicuna's preset wants
    (folder / "base" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    for name, seed in (("llama", 1), ("vicuna", 2)):
        tiny.make(folder / name, seed=seed)
    run = subprocess.run([*tiny.command()[:3], "make-delta", "llama", "vicuna", "vicuna-delta", "-q"], cwd=folder, env=tiny.environment(), capture_output=True)  # fmt: skip
    assert run.returncode == 0, run.stderr
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
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "vtools").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vtools "$@"\n')
    (tools / "vtools").chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = tiny.environment(PATH=path, OPENAI_API_KEY="none", VTOOLS_CACHE=str(tmp_path / "cache"))
    env |= {"OPENAI_BASE_URL": f"{anywhere}/v1"} if "serve" not in example else {}
    command = ["bash", "-o", "pipefail", "-c", example]
    if "vtools serve" in example:
        process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
        try:
            assert select.select([process.stdout], [], [], 120)[0]
            assert b"http://127.0.0.1:" in process.stdout.readline()
            if "chat" in example:
                assert process.wait(120) == 0, process.stderr.read()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
            process.stdout.close()
            process.stderr.close()
        return
    done = subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_the_readme_shows_every_tool():
    text = (ROOT / "README.md").read_text()
    for name in cli.COMMANDS:
        assert f"vtools {name}" in text, name
