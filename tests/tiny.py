"""A tiny random Llama with its own tokenizer and conversations for it, made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

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


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a finished model and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
