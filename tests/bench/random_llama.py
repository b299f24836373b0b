"""A Llama of a given shape with random weights, and conversations of random words whose lengths are those of real ones.

A child of h200_train.py: python tests/bench/random_llama.py FOLDER JOB, with the shape and counts as JSON, writes
base.json, chats.jsonl and tokens.jsonl into FOLDER and prints a line of JSON about them.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

MAX_TOKENS = 2048
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' }}{{ message.role }}{{ '\\n' }}{{ message.content }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def lengths(number: int, longest: int, seed: int) -> list[int]:
    """Token counts that follow the real distribution, cut to scale where `longest` is not 2048."""
    percentiles = json.loads((Path(__file__).parent / "lengths.json").read_text())["percentiles"]
    source = random.Random(seed)
    found = []
    for _ in range(number):
        place = source.uniform(0, 100)
        low = min(int(place), 99)
        value = percentiles[low] + (place - low) * (percentiles[low + 1] - percentiles[low])
        found.append(max(12, min(longest, round(value * longest / MAX_TOKENS))))
    return found


def main(folder: Path, job: dict[str, Any]) -> None:
    """A random model with a word tokenizer, conversations of the wanted lengths, and their tokens by vtools."""
    import tokenizers
    import torch
    import trl_train
    from transformers import LlamaConfig, LlamaForCausalLM

    place = folder / "model"
    place.mkdir()
    words = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant"]
    words += [f"w{number}" for number in range(job["vocabulary"] - len(words))]
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(words[:4])
    backend.save(str(place / "tokenizer.json"))
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **tokens}
    (place / "tokenizer_config.json").write_text(json.dumps(about))
    config = LlamaConfig(
        vocab_size=job["vocabulary"],
        hidden_size=job["width"],
        intermediate_size=job["inner"],
        num_hidden_layers=job["layers"],
        num_attention_heads=job["heads"],
        num_key_value_heads=job["groups"],
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=1,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(place)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in LlamaForCausalLM(config).state_dict().items()}
    size = write_weights(place, shapes, "cpu" if job["dry"] or not torch.cuda.is_available() else "cuda")
    source = random.Random(0)
    counts = lengths(job["conversations"], job["max_tokens"], 1)
    with (folder / "all.jsonl").open("w") as out:
        for index, count in enumerate(counts):
            out.write(json.dumps({"id": f"c{index}", "messages": conversation(count, words[6:], source)}) + "\n")
    everything = {"model": str(place), "data": str(folder / "all.jsonl"), "max_tokens": job["max_tokens"], "seed": 0}
    trl_train.prepare_child(folder, {**everything, "batch": job["take"], "steps": 1})
    (folder / "chats.jsonl").unlink()
    (folder / "all.jsonl").rename(folder / "chats.jsonl")
    found = [len(json.loads(text)["input_ids"]) for text in (folder / "tokens.jsonl").open()]
    figures = {"weights_gb": size / 1e9, "conversations": len(counts), "mean_tokens": statistics.mean(found)}
    print(json.dumps({**figures, "longest": max(found)}))


def conversation(count: int, words: list[str], source: random.Random) -> list[dict[str, str]]:
    """Rounds of random words that make `count` tokens with the template's three a message; 77 % are answers."""
    rounds = max(1, min(count // 300, 8))
    budget = count - 6 * rounds
    messages = []
    for index in range(rounds):
        part = budget // rounds + (budget % rounds if index == 0 else 0)
        asked = max(1, round(part * 0.23))
        for role, number in (("user", asked), ("assistant", max(1, part - asked))):
            messages.append({"role": role, "content": " ".join(source.choices(words, k=number))})
    return messages


def write_weights(place: Path, shapes: dict[str, Any], device: str) -> int:
    """bf16 weights of about a gigabyte a file, drawn on the device and written four files at a time."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from safetensors.torch import save_file

    shards: list[list[str]] = [[]]
    filled = 0
    for key, shape in shapes.items():
        size = 2 * shape.numel()
        if shards[-1] and filled + size > 1 << 30:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    names = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    torch.manual_seed(0)

    def draw(key: str) -> torch.Tensor:
        if len(shapes[key]) == 1:
            return torch.ones(shapes[key], dtype=torch.bfloat16)
        return torch.empty(shapes[key], dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()

    def write(index: int) -> None:
        save_file({key: draw(key) for key in shards[index]}, place / names[index], metadata={"format": "pt"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(len(shards))))
    total = sum(2 * shape.numel() for shape in shapes.values())
    where = {key: names[index] for index, keys in enumerate(shards) for key in keys}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
