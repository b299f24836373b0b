"""The JSON files beside saved weights, as other programs read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtools.models import configs
from vtools.process import Failure

# Forms of generation_config.json as models are published with, and whether such a model samples.
FORMS = [
    ({}, None),
    ({"temperature": 0.9, "top_p": 0.6}, True),  # LLaMA 2's first
    ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, True),
    ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0}, True),
    ({"do_sample": False, "top_k": 20}, False),
    ({"do_sample": False, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05}, False),
    ({"do_sample": False, "min_p": 0.1}, False),
    ({"temperature": 0.0}, False),
    ({"do_sample": True, "temperature": 0.0}, False),
    ({"temperature": 0, "top_k": 1}, False),
    ({"top_k": 64, "top_p": 0.95}, True),  # Gemma
    ({"min_p": 0.05}, True),
    ({"min_p": 0.0}, None),
    ({"typical_p": 0.9}, True),
    ({"temperature": 1.0, "top_k": 50, "top_p": 1.0}, None),
    ({"temperature": None, "top_p": None}, None),
    ({"early_stopping": True, "length_penalty": 2.0}, None),
    ({"num_beams": 4, "early_stopping": True}, None),
    ({"pad_token_id": -1, "eos_token_id": [2, 3]}, None),
    ({"use_cache": False, "max_new_tokens": 512, "transformers_version": "4.31.0.dev0"}, None),
]


@pytest.mark.parametrize(("base", "sampled"), FORMS)
def test_generation_settings_can_be_loaded_and_saved_again(base, sampled, tmp_path):
    transformers = pytest.importorskip("transformers")
    made = configs.generation_settings({"bos_token_id": 1, "eos_token_id": 2, **base})
    assert made.get("do_sample") is sampled
    assert made["use_cache"] is True and made["eos_token_id"] == base.get("eos_token_id", 2)
    assert configs.generation_settings(made) == made
    (tmp_path / "generation_config.json").write_text(json.dumps(made))
    transformers.GenerationConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    kept = {key: value for key, value in base.items() if key in ("repetition_penalty", "max_new_tokens", "num_beams")}
    assert kept.items() <= made.items()


LIMITS = [
    ({}, None),
    ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
    ({"max_position_embeddings": -1}, None),
    ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": None}}, 4096),
    # Vicuna 16k as published: vLLM multiplies the smallest limit by the factor.
    ({"max_position_embeddings": 4096, "max_sequence_length": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
    ({"max_position_embeddings": 16384, "max_sequence_length": 4096, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, 16384),
    ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
    ({"max_position_embeddings": 40960, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
    ({"max_position_embeddings": 32768, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 65536),
    # Of these, the limit after scaling is stated.
    ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}, 131072),
    ({"model_type": "gemma3_text", "max_position_embeddings": 131072, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 131072),
    ({"max_position_embeddings": 2048, "rope_scaling": "linear"}, 2048),
]  # fmt: skip


@pytest.mark.parametrize(("config", "limit"), LIMITS)
def test_the_limit_of_a_model_is_the_one_after_rope_scaling(config, limit):
    assert configs.context_limit(config) == limit


NO_LIMITS = [
    ({"max_position_embeddings": "4096"}, "max_position_embeddings is '4096'"),
    ({"max_position_embeddings": [4096]}, r"max_position_embeddings is \[4096\]"),
    ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": "2.0"}}, "factor is '2.0'"),
    ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor is nan"),
    ({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": [2]}}, r"factor is \[2\]"),
]


@pytest.mark.parametrize(("config", "says"), NO_LIMITS)
def test_a_limit_that_is_no_number_is_named(config, says):
    with pytest.raises(Failure, match=f"config.json: {says}, not a number; correct it"):
        configs.context_limit(config)


def test_what_only_older_programs_read_is_kept_from_the_base_and_code_that_is_not_copied_is_not_named():
    base = {
        "model_type": "gemma3_text",
        "sliding_window_pattern": 6,
        "vocab_size": 8,
        "auto_map": {"AutoConfig": "code.A"},
    }
    made = configs.in_both_forms({"model_type": "gemma3_text", "vocab_size": 9}, base | {"_name_or_path": "/home/me"})
    assert made == {"model_type": "gemma3_text", "sliding_window_pattern": 6, "vocab_size": 9}
    assert configs.in_both_forms({"model_type": "llama"}, base) == {"model_type": "llama"}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512, "head_dim": 16,
}  # fmt: skip
MODELS = {
    "another theta": ("LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama3": (
        "LlamaConfig",
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64, "rope_theta": 500000.0}},
    ),
    "linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "yarn": (
        "Qwen2Config",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "rope_theta": 1000000.0,
            }
        },
    ),
    "a theta for each kind of layer": (
        "Gemma3TextConfig",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
            },
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16,
        },
    ),
    "part of the head rotates": (
        "StableLmConfig",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 30000.0, "partial_rotary_factor": 0.5}},
    ),
}
LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager").eval()
with torch.no_grad():
    torch.save(model(torch.arange(1, 201).unsqueeze(0)).logits, sys.argv[2])
"""


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory) -> Path:
    """A folder with the last transformers 4, to put before all others in PYTHONPATH."""
    folder = tmp_path_factory.mktemp("transformers-4")
    wanted = ["transformers==4.57.*", "huggingface-hub<1", "tokenizers>=0.22,<0.23"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"transformers 4 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_transformers_4_and_5_read_the_same_model(kind, tmp_path, transformers_4):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, settings = MODELS[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**SIZES, **settings))
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    written = configs.in_both_forms(json.loads(path.read_text()))
    path.write_text(json.dumps(written))
    assert written["dtype"] == written["torch_dtype"] == "float32"
    for version, before in (("5", []), ("4", [str(transformers_4)])):
        command = [sys.executable, "-c", LOGITS, str(tmp_path / "model"), str(tmp_path / version)]
        subprocess.run(
            command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(before)}, capture_output=True
        )
    model = model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        ours = model(torch.arange(1, 201).unsqueeze(0)).logits
    assert torch.equal(torch.load(tmp_path / "5"), ours)
    assert (torch.load(tmp_path / "4") - ours).abs().max() < 1e-5
