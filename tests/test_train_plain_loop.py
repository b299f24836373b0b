"""`vtools train` beside a plain training loop: transformers' models, template, schedule and loss, torch's AdamW."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from training import finish

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from vtools.train import schedule  # noqa: E402

# tiny's template, with the marks by which transformers finds what is the assistant's.
MARKED = tiny.TEMPLATE.replace("{{ message.content }}{{ '<|im_end|>\\n' }}", "CONTENT").replace(
    "CONTENT",
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{{ '<|im_end|>' }}{% endgeneration %}"
    "{{ '\\n' }}{% else %}{{ message.content }}{{ '<|im_end|>\\n' }}{% endif %}",
)
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "head_dim": 16,
}  # fmt: skip
KINDS = {
    "Llama": {},
    "Llama, tied": {"tie_word_embeddings": True},
    "Qwen2": {"num_hidden_layers": 3},  # biases of queries, keys and values
    "Qwen3": {},  # norms of queries and keys
    "Mistral": {"sliding_window": 8},
    "Gemma3Text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "Gemma2": {  # scores and logits that are capped, far below what they would be
        "sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16,
    },
    "Granite": {
        "logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2,
    },
    "Cohere": {"logit_scale": 0.3, "use_qk_norm": True},
    "Phi": {"partial_rotary_factor": 0.5},  # biases everywhere, the head's too
}  # fmt: skip
QUICK = ("Llama", "Qwen2", "Gemma2")
STEPS, BATCH, RATE, WARMUP = 7, 9, 1e-3, 2


def made(folder: Path, kind: str) -> Path:
    """A random model of a kind with tiny's tokenizer, its norms and biases off 1 and 0."""
    tiny.make(folder)
    name = kind.partition(",")[0]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    settings = {**SIZES, "tie_word_embeddings": False, "pad_token_id": 0, **KINDS[kind], "vocab_size": vocabulary}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def plain_loop(folder: Path, records: list[dict[str, Any]]) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train conversation by conversation; the loss and learning rate of each step, and the weights."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    rates = transformers.get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    rows = [
        tokenizer.apply_chat_template(
            one["messages"], chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        for one in records
    ]
    metrics = []
    for step in range(STEPS):
        epoch, index = divmod(step, -(-len(rows) // BATCH))
        members = schedule.steps([len(row["input_ids"]) for row in rows], 0, epoch, BATCH)[index]
        trained = sum(sum(rows[one]["assistant_masks"]) for one in members)
        total = 0.0
        for one in members:
            ids, mask = torch.tensor([rows[one]["input_ids"]]), torch.tensor([rows[one]["assistant_masks"]])
            loss = model(input_ids=ids, labels=ids.masked_fill(mask == 0, -100), num_items_in_batch=trained).loss
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        metrics.append({"loss": total, "lr": rates.get_last_lr()[0], "grad_norm": norm})
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
    return metrics, model.state_dict()


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
def test_training_is_that_of_a_plain_loop_in_transformers(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder, records = made(tmp_path / "base", kind), tiny.conversations(25)
    data = tiny.write(tmp_path / "data.jsonl", records)
    done = finish(
        "--model", folder, "--data", data, "--out", tmp_path / "out", "--batch", BATCH, "--max-steps", STEPS,
        "--lr", RATE, "--warmup", WARMUP, "--dtype", "fp32", "--save-dtype", "fp32", "--seed", 0, "--max-tokens", 512,
    )  # fmt: skip
    ours = [row for row in done.records if "loss" in row]
    expected, weights = plain_loop(folder, records)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert [row["lr"] for row in ours] == [row["lr"] for row in expected]
    for row, other in zip(ours, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-7)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-6)
    assert found.keys() == {name for name in weights if name != "lm_head.weight" or name in found}
    for name, tensor in found.items():
        # Scores do not change by a key's bias where it does not rotate: Adam moves it by rounding errors.
        if kind != "Phi" or not name.endswith("k_proj.bias"):
            far = (tensor - weights[name]).norm() / weights[name].norm()
            assert far < (6e-5 if name.endswith("bias") else 1e-7), name
