"""Tiny models for the tests of the engine, and what transformers answers with them."""

from __future__ import annotations

import json
from pathlib import Path

import tiny


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def made(folder: Path, context: int = 512, endless: bool = False, **options) -> Path:
    """A tiny model with this context; an endless one never takes its end token by itself."""
    tiny.make(folder, tied=False, **options)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": context}))
    if endless:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"][2] = 0  # of 400 random logits one is always above 0
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def greedy(folder: Path | str, prompt: list[int], most: int, end: int = 2) -> list[int]:
    """What transformers' own `generate` answers."""
    import torch

    from vtools.models.load import load_model

    loaded = load_model(str(folder))
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": most, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    with torch.no_grad():
        return loaded.generate(ids, attention_mask=torch.ones_like(ids), **options)[0][len(prompt) :].tolist()


def text(engine, ids: list[int], end: int = 2) -> str:
    """The text of an answer; where it is cut off, without half a character at its end."""
    decoded = engine.tokenizer.decode(ids)
    return decoded if ids[-1] == end else decoded.rstrip("\ufffd")
