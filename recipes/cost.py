#!/usr/bin/env python3
"""Write cost.md: tokens, FLOPs, hours and dollars of both Vicunas on several machines, by `vtools train --dry-run`.

    python recipes/cost.py train.jsonl --of 15768 --tokenizer llama-tokenizer > recipes/cost.md

train.jsonl is what `split` made of --of clean conversations for LLaMA (recipes/vicuna-7b.sh makes it). Its counts are
multiplied to those of --conversations with the same lengths. Dollars are by --prices, a file to edit. Weights are not
needed: the configurations of LLaMA are written here, beside the vocabulary of --tokenizer.
"""

import argparse
import json
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
    parser.add_argument(
        "train", type=Path, help="segments, from `vtools split --template vicuna-v1.1 --max-tokens 2048`"
    )
    parser.add_argument("--of", type=int, required=True, help="how many conversations they are of")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with LLaMA's tokenizer.model")
    parser.add_argument("--conversations", type=int, default=70_000, help="how many to count for (70000)")
    parser.add_argument("--prices", type=Path, default=HERE / "data" / "prices.json", help="dollars per GPU-hour")
    asked = parser.parse_args()
    prices = json.loads(asked.prices.read_text())["gpu"]
    plans = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, sizes in MODELS.items():
            base = configured(Path(folder) / model, asked.tokenizer, sizes)
            for gpu, number, _ in MACHINES:
                plans[model, gpu] = planned(base, asked.train, gpu, number)
    counted = tokens_of(asked.train, asked.tokenizer)
    print(page(plans, prices, asked.conversations, asked.of, counted), end="")


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


def page(
    plans: dict[tuple[str, str], dict[str, Any]], prices: dict[str, float], wanted: int, of: int, counted: int
) -> str:
    """The text of cost.md."""
    first = next(iter(plans.values()))
    scale, epochs = wanted / of, first["epochs"]
    off = first["data_tokens"] / counted - 1
    pieces, tokens, steps = first["conversations"], first["data_tokens"], round(first["steps"] * scale)
    lines = [
        "# What Vicuna costs",
        "",
        f"Written by `python recipes/cost.py`: dry runs of `vtools train --preset vicuna-v1.1` on {of:,} real",
        f"conversations, cleaned and split to {pieces:,} segments of {tokens:,} tokens, multiplied to {wanted:,}",
        f"of the same lengths: {tokens * scale / 1e6:,.0f}M tokens, {epochs} epochs of {steps // epochs:,} steps.",
        f"SentencePiece alone counts {counted:,} tokens in the real ones: the dry run is {abs(off):.3%} off.",
        f"Hours assume {100 * first['assumed_mfu']:.0f} % of the peak; nothing was measured on these machines.",
        "Dollars are by `data/prices.json`, whose prices are examples: edit them, and repeat the command.",
        "",
        "| model | machine | fits | tokens | FLOPs | hours | on demand | spot |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, gpu), plan in plans.items():
        number, name = next((number, name) for kind, number, name in MACHINES if kind == gpu)
        hours = plan["seconds"] * scale / 3600
        memory = plan["memory_gb"]
        fits = "no" if plan["problem"] else f"{memory['total']:.0f} of {memory['available']:.0f} GB"
        costs = [_dollars(hours * number, prices.get(kind)) for kind in (gpu, f"{gpu}-spot")]
        trained = f"{plan['data_tokens'] * epochs * scale / 1e6:,.0f}M"
        row = [model, name, fits, trained, f"{plan['flops'] * scale:.2g}", f"{hours:,.1f}", *costs]
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
