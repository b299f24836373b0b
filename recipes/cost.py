#!/usr/bin/env python3
"""Write cost.md: tokens, FLOPs, hours and dollars of both Vicunas on several machines, by `vtools train --dry-run`.

    python recipes/cost.py clean.jsonl --tokenizer llama-tokenizer > recipes/cost.md

clean.jsonl is what `vtools clean` left of a dump (recipes/vicuna-7b.sh makes it). Its conversations are repeated until
there are --conversations of the same lengths. Dollars are by --prices, a file to edit. Weights are not needed: the
configurations of LLaMA are written here, beside the vocabulary of --tokenizer. Takes 10 minutes.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = {"7B": (32, 32, 4096, 11008), "13B": (40, 40, 5120, 13824)}  # layers, heads, width, width of the perceptrons
MACHINES = [
    ("a100", 8, "8 × A100-40G"),
    ("a100-80g", 8, "8 × A100-80G"),
    ("h100", 8, "8 × H100"),
    ("h200", 1, "1 × H200"),
]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write cost.md from dry runs of `vtools train`.")
    parser.add_argument("clean", type=Path, help="conversations, from `vtools clean`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with LLaMA's tokenizer.model")
    parser.add_argument("--conversations", type=int, default=70_000, help="how many to count for (70000)")
    parser.add_argument("--prices", type=Path, default=HERE / "data" / "prices.json", help="dollars per GPU-hour")
    asked = parser.parse_args()
    prices = json.loads(asked.prices.read_text())["gpu"]
    lines = asked.clean.read_bytes().splitlines(keepends=True)
    plans = {}
    with tempfile.TemporaryDirectory() as folder:
        bases = {name: configured(Path(folder) / name, asked.tokenizer, sizes) for name, sizes in MODELS.items()}
        real = segments(asked.clean, asked.tokenizer, Path(folder) / "real.jsonl")
        one = planned(bases["7B"], real, "h100", 8)
        counted = tokens_of(real, asked.tokenizer)
        (Path(folder) / "many.jsonl").write_bytes(
            b"".join(itertools.islice(itertools.cycle(lines), asked.conversations))
        )
        corpus = segments(Path(folder) / "many.jsonl", asked.tokenizer, Path(folder) / "train.jsonl")
        for model, base in bases.items():
            for gpu, number, _ in MACHINES:
                plans[model, gpu] = planned(base, corpus, gpu, number)
    tokens = one["data_tokens"]
    told = f"{tokens:,} tokens, SentencePiece alone {counted:,}: {abs(tokens / counted - 1):.3%} off."
    print(page(plans, prices, asked.conversations, len(lines), told), end="")


def segments(conversations: Path, tokenizer: Path, out: Path) -> Path:
    """The file `out`, with the segments that `vtools split` makes of the conversations."""
    command = ["vtools", "split", conversations, "--template", "vicuna-v1.1", "--max-tokens", "2048", "--quiet"]
    subprocess.run([*command, "--tokenizer", tokenizer, "--rejects", os.devnull, "-o", out], check=True)
    return out


def configured(folder: Path, tokenizer: Path, sizes: tuple[int, int, int, int]) -> Path:
    """A folder with LLaMA's configuration in this size and its vocabulary."""
    shutil.copytree(tokenizer, folder)
    layers, heads, width, between = sizes
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": width,
        "intermediate_size": between, "num_hidden_layers": layers, "num_attention_heads": heads,
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def planned(base: Path, train: Path, gpu: str, number: int) -> dict[str, Any]:
    """The report of a dry run."""
    command = ["vtools", "train", train, "--model", base, "--preset", "vicuna-v1.1", "--dry-run", "--quiet"]
    done = subprocess.run([*command, "--gpu", gpu, "--nproc", str(number)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def tokens_of(train: Path, tokenizer: Path) -> int:
    """Tokens by SentencePiece of the published template's text, without vtools, where an answer begins within 2048."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    total = 0
    for line in train.open(encoding="utf-8"):
        turns, text, length = json.loads(line)["messages"], SYSTEM + " ", 1
        before_answer = len(pieces.encode(f"{text}USER: {turns[0]['content']} ASSISTANT:"))
        for turn in turns:
            if turn["role"] == "user":
                text += f"USER: {turn['content']} ASSISTANT:"
            else:
                length += len(pieces.encode(f"{text} {turn['content']}")) + 1
                text = ""
        total += min(length, 2048) if before_answer < 2047 else 0
    return total


def page(plans: dict[tuple[str, str], dict[str, Any]], prices: dict[str, float], of: int, real: int, told: str) -> str:
    """The text of cost.md: the plans for `of` conversations, and what was `told` of those that are real."""
    first = next(iter(plans.values()))
    steps = first["steps"] // first["epochs"]
    lines = [
        "# What Vicuna costs",
        "",
        "Written by `python recipes/cost.py`: dry runs of `vtools train --preset vicuna-v1.1` over "
        f"{of:,} conversations\nwith the lengths of {real:,} cleaned real ones: {first['conversations']:,} segments "
        f"of at most 2048 tokens,\n{first['data_tokens'] / 1e6:,.0f}M tokens, {first['epochs']} epochs of {steps:,} "
        f"steps. In the real ones the dry run counts\n{told}",
        f"Hours assume {100 * first['assumed_mfu']:.0f} % of the peak; nothing was measured on these machines.",
        "Dollars are by `data/prices.json`, whose prices are examples: edit them, and repeat the command.",
        "",
        "| model | machine | fits | tokens | FLOPs | hours | on demand | spot |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, gpu), plan in plans.items():
        number, name = next((number, name) for kind, number, name in MACHINES if kind == gpu)
        hours = plan["seconds"] / 3600
        memory = plan["memory_gb"]
        fits = "no" if plan["problem"] else f"{memory['total']:.0f} of {memory['available']:.0f} GB"
        costs = [_dollars(hours * number, prices.get(kind)) for kind in (gpu, f"{gpu}-spot")]
        trained = f"{plan['data_tokens'] * plan['epochs'] / 1e6:,.0f}M"
        spent = ["-"] * 3 if plan["problem"] else [f"{hours:,.1f}", *costs]
        row = [model, name, fits, trained, f"{plan['flops']:.2g}", *spent]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "Published in 2023, on 8 A100: Vicuna 7B $500 on demand and $140 on spot machines, 13B $1,000 and $300.",
        "Alpaca's 52K instructions cost less than $500.",
    ]
    return "\n".join(lines) + "\n"


def _dollars(hours: float, price: float | None) -> str:
    return "?" if price is None else f"${hours * price:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
