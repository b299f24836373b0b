"""config.json as models are published with it: every key that decides something, under its name there, in tiny sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny

ROWS = 320  # of the embedding: more than the tokenizer has
LIMIT = 128  # positions of a base; what is longer shows scaling
WINDOW = 48

TRAINED = "trained"
NO_LIST = "an architecture without a plain list of layers cannot be trained here"
RENAMED = "has other tensors in its files than in transformers"
NO_DOCUMENTS = "does not tell its attention where documents end"
BY_LENGTH = "position embeddings depend on the row length and cannot be trained with packing"
EXPORTED = "exported"
NO_GGUF = "cannot be exported to GGUF; supported: llama, mistral, qwen2, qwen3"


@dataclass(frozen=True)
class Base:
    """A base's JSON files, and what becomes of it: TRAINED and EXPORTED, or the words with which it is refused."""

    config: dict[str, Any]
    train: str = TRAINED
    export: str = EXPORTED
    generation: dict[str, Any] | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    options: tuple[Any, ...] = ()  # of train
    trained_as: dict[str, Any] = field(default_factory=dict)  # what these options make of config.json
    context: int = LIMIT  # of the tuned model
    apart_in_4: bool = False  # transformers 4.57 reads the base itself in another way than 5 does
    told: str = ""  # what export says of a file that llama.cpp reads otherwise beyond the window


SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": ROWS,
    "max_position_embeddings": LIMIT, "bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.02, "use_cache": True,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}


def llama(**settings: Any) -> dict[str, Any]:
    own = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
    return {**own, **SIZES, "tie_word_embeddings": False, "torch_dtype": "float16", **settings}


def llama3(**settings: Any) -> dict[str, Any]:
    own = {
        **GROUPED, "attention_bias": False, "attention_dropout": 0.0, "pretraining_tp": 1, "rope_scaling": None,
        "rope_theta": 500000.0, "torch_dtype": "bfloat16", "transformers_version": "4.40.0.dev0",
    }  # fmt: skip
    return llama(**own | settings)


def mistral(**settings: Any) -> dict[str, Any]:
    own = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "bfloat16"}
    return llama(**own | GROUPED | {"attention_dropout": 0.0} | settings)


def qwen2(**settings: Any) -> dict[str, Any]:
    own = {
        **GROUPED, "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "max_window_layers": 1,
        "model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": WINDOW,
        "torch_dtype": "bfloat16", "use_sliding_window": False,
    }  # fmt: skip
    return llama(**own | settings)


def qwen3(**settings: Any) -> dict[str, Any]:
    own = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 24, "model_type": "qwen3",
        "rope_scaling": None, "sliding_window": None, "transformers_version": "4.51.0",
    }  # fmt: skip
    return qwen2(**own | settings)


def gemma(name: str, **settings: Any) -> dict[str, Any]:
    own = {
        **GROUPED, "architectures": [name], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 24,
        "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16",
    }  # fmt: skip
    made = llama(**own | settings)
    del made["tie_word_embeddings"]  # the class ties them
    return made


def gemma3(**settings: Any) -> dict[str, Any]:
    own = {
        "attn_logit_softcapping": None, "cache_implementation": "hybrid", "final_logit_softcapping": None,
        "model_type": "gemma3_text", "query_pre_attn_scalar": 24, "rope_local_base_freq": 10000, "rope_theta": 1000000,
        "sliding_window": WINDOW, "sliding_window_pattern": 2, "transformers_version": "4.50.0.dev0",
    }  # fmt: skip
    return gemma("Gemma3ForCausalLM", **own | settings)


def phi3(**settings: Any) -> dict[str, Any]:
    code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    own = {
        "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "auto_map": code, "embd_pdrop": 0.0, "model_type": "phi3", "num_key_value_heads": 4,
        "pad_token_id": 1, "resid_pdrop": 0.0, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.2",
    }  # fmt: skip
    return llama(**own | settings)


def saved_by_5(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The configuration under the names of transformers 5."""
    older = ("torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern")
    made = {key: value for key, value in config.items() if key not in older}
    return {**made, "dtype": "bfloat16", "transformers_version": "5.2.0", **settings}


LLAMA3_ROPE = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}  # fmt: skip
SAMPLED = {"bos_token_id": 0, "eos_token_id": [2, 1], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
FACTORS = [1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0]
UNLIMITED = {"model_max_length": 1000000000000000019884624838656}

BASES = {
    "llama 1": Base(
        llama(max_sequence_length=LIMIT, pad_token_id=0, rms_norm_eps=1e-6, transformers_version="4.28.0.dev0"),
        generation={"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0},
        tokenizer=UNLIMITED,
    ),
    "llama 1, converted first": Base(
        llama(max_sequence_length=LIMIT, pad_token_id=-1, rms_norm_eps=1e-6, transformers_version="4.27.0.dev0"),
        generation={"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": -1},
    ),
    "llama 2": Base(
        llama(
            _name_or_path="meta-llama/Llama-2-7b-hf", **GROUPED, pretraining_tp=1, rope_scaling=None,
            transformers_version="4.31.0.dev0",
        ),
        generation={"eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6, "max_length": LIMIT},
        tokenizer={"model_max_length": LIMIT, "legacy": False},
    ),
    "code llama": Base(llama(**GROUPED, rope_theta=1000000.0, rope_scaling=None, pretraining_tp=1)),
    "llama 3": Base(llama3(), generation=SAMPLED, tokenizer={"model_max_length": LIMIT}),
    "llama 3.1": Base(
        llama3(rope_scaling=LLAMA3_ROPE, mlp_bias=False, eos_token_id=[2, 1], transformers_version="4.43.0.dev0"),
        generation=SAMPLED,
    ),
    "llama 3.2": Base(
        llama3(
            rope_scaling=LLAMA3_ROPE | {"factor": 32.0}, mlp_bias=False, head_dim=16, tie_word_embeddings=True,
            transformers_version="4.45.0.dev0",
        ),
        generation=SAMPLED,
    ),
    "vicuna 1.5 16k": Base(
        llama(
            max_sequence_length=4 * LIMIT, pad_token_id=0, pretraining_tp=1,
            rope_scaling={"factor": 4.0, "type": "linear"}, transformers_version="4.31.0",
        ),
        generation={"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6},
        tokenizer={"model_max_length": 4 * LIMIT},
        context=4 * LIMIT,
    ),
    "llama, dynamic": Base(
        llama(rope_scaling={"factor": 2.0, "type": "dynamic"}),
        train=f"dynamic {BY_LENGTH}",
        export="rope scaling 'dynamic' has no form in GGUF",
    ),
    "tinyllama": Base(llama(**GROUPED, pretraining_tp=1, rope_scaling=None, torch_dtype="bfloat16", _name_or_path="ckpt")),
    "smollm 2": Base(
        llama(
            **GROUPED, tie_word_embeddings=True, rope_theta=100000, rope_interleaved=False, is_llama_config=True,
            rope_scaling=None, mlp_bias=False, attention_bias=False, pad_token_id=2, pretraining_tp=1,
            torch_dtype="bfloat16", **{"transformers.js_config": {"dtype": "q4"}, "transformers_version": "4.42.3"},
        ),
    ),
    "yi": Base(
        llama(
            **GROUPED, _name_or_path="01-ai/Yi-6B", rope_theta=5000000.0, pad_token_id=0, pretraining_tp=1,
            auto_map={"AutoConfig": "configuration_yi.YiConfig", "AutoModelForCausalLM": "modeling_yi.YiForCausalLM"},
            rope_scaling=None, torch_dtype="bfloat16",
        ),
        tokenizer={"auto_map": {"AutoTokenizer": ["tokenization_yi.YiTokenizer", None]}},
    ),
    "deepseek llm": Base(
        llama(_name_or_path="deepseek-ai/deepseek-llm-7b", num_key_value_heads=4, pretraining_tp=1, rope_theta=10000.0)
    ),
    "llama with biases": Base(llama3(attention_bias=True, mlp_bias=True)),
    "llama of transformers 5": Base(
        saved_by_5(llama3(), head_dim=16, rope_parameters={**LLAMA3_ROPE, "rope_theta": 500000.0}),
        apart_in_4=True,
    ),
    "smollm 3": Base(
        qwen2(
            architectures=["SmolLM3ForCausalLM"], model_type="smollm3", num_hidden_layers=4, rope_theta=5000000.0,
            no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0], layer_types=["full_attention"] * 4, mlp_bias=False,
            sliding_window=None, tie_word_embeddings=True, attention_bias=False, pad_token_id=1, pretraining_tp=2,
            rope_scaling=None,
        ),
        export=NO_GGUF,
    ),
    "mistral 0.1": Base(
        mistral(rope_theta=10000.0, sliding_window=WINDOW, transformers_version="4.34.0.dev0"),
        told=f"{WINDOW} tokens back",
    ),
    "mistral 0.3": Base(mistral(rope_theta=1000000.0, sliding_window=None, transformers_version="4.42.0.dev0")),
    "mistral nemo": Base(mistral(rope_theta=1000000.0, sliding_window=None, head_dim=24)),
    "mixtral": Base(
        mistral(
            architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=8, num_experts_per_tok=2,
            output_router_logits=False, router_aux_loss_coef=0.02, rope_theta=1000000.0, sliding_window=None,
        ),
        train="a mixture of 8 experts; only dense models can be trained here",
        export=NO_GGUF,
    ),
    "qwen 1.5": Base(qwen2(transformers_version="4.37.2"), generation={"eos_token_id": 2, "max_new_tokens": 2048}),
    "qwen 2.5": Base(
        qwen2(tie_word_embeddings=True, use_mrope=False, transformers_version="4.43.1"),
        generation={**SAMPLED, "repetition_penalty": 1.05, "top_k": 20},
        tokenizer={"model_max_length": 4 * LIMIT},
    ),
    "qwen 2.5, yarn": Base(
        qwen2(rope_scaling={"factor": 4.0, "original_max_position_embeddings": LIMIT, "type": "yarn"}),
        context=4 * LIMIT,
    ),
    "deepseek r1, qwen": Base(qwen2(rope_theta=10000, use_mrope=False, transformers_version="4.44.0")),
    "qwen 2, windows": Base(qwen2(use_sliding_window=True), told=f"{WINDOW} tokens back"),
    "qwen 3": Base(qwen3(tie_word_embeddings=True), generation={**SAMPLED, "top_k": 20, "min_p": 0.0}),
    "qwen 3, yarn": Base(
        qwen3(
            max_position_embeddings=LIMIT + 32,
            rope_scaling={"factor": 4.0, "original_max_position_embeddings": LIMIT, "rope_type": "yarn"},
        ),
        context=4 * LIMIT,
    ),
    "qwen 3 of transformers 5": Base(
        saved_by_5(
            qwen3(),
            layer_types=["full_attention"] * 2,
            rope_parameters={"rope_theta": 1000000, "rope_type": "default"},
        ),
        apart_in_4=True,
    ),
    "gemma": Base(
        gemma("GemmaForCausalLM", model_type="gemma", rope_theta=10000.0, rope_scaling=None, hidden_act="gelu"),
        apart_in_4=True,  # 5 knows that "gelu" stands for the tanh approximation here
        export=NO_GGUF,
    ),
    "gemma 2": Base(
        gemma(
            "Gemma2ForCausalLM", model_type="gemma2", attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
            query_pre_attn_scalar=24, sliding_window=WINDOW, sliding_window_size=WINDOW, cache_implementation="hybrid",
            rope_theta=10000.0,
        ),
        export=NO_GGUF,
    ),
    "gemma 3": Base(gemma3(rope_local_base_freq=20000, rope_scaling=None), export=NO_GGUF),
    "gemma 3, scaled": Base(gemma3(rope_scaling={"factor": 8.0, "rope_type": "linear"}), export=NO_GGUF),
    "gemma 3 of transformers 5": Base(
        saved_by_5(
            gemma3(),
            _sliding_window_pattern=2,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {"factor": 8.0, "rope_theta": 1000000.0, "rope_type": "linear"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
        ),
        export=NO_GGUF,
        apart_in_4=True,
    ),
    "phi 3, 4k": Base(
        phi3(original_max_position_embeddings=LIMIT, rope_scaling=None, sliding_window=WINDOW), export=NO_GGUF,
        tokenizer={"model_max_length": LIMIT},
    ),
    "phi 3, 128k, at first": Base(
        phi3(
            original_max_position_embeddings=32, sliding_window=2 * LIMIT,
            rope_scaling={"long_factor": FACTORS, "short_factor": [1.0] * 8, "type": "su"},
        ),
        train="cannot be loaded: \"Missing required keys",  # transformers 5 does not read it
        export=NO_GGUF,
    ),
    "phi 3, 128k": Base(
        phi3(
            original_max_position_embeddings=32, sliding_window=2 * LIMIT,
            rope_scaling={"long_factor": FACTORS, "short_factor": [1.0] * 8, "type": "longrope"},
        ),
        train=f"longrope {BY_LENGTH}",
        export=NO_GGUF,
    ),
    "phi 4 mini": Base(
        phi3(
            original_max_position_embeddings=32, sliding_window=2 * LIMIT, partial_rotary_factor=0.75, tie_word_embeddings=True,
            num_key_value_heads=2, full_attn_mod=1, interpolate_factor=1, lm_head_bias=False, mlp_bias=False,
            rope_scaling={"long_factor": FACTORS[:6], "short_factor": [1.0] * 6, "type": "longrope"},
        ),
        train=f"longrope {BY_LENGTH}",
        export=NO_GGUF,
    ),
    "phi 4": Base(
        phi3(
            num_key_value_heads=2, original_max_position_embeddings=LIMIT, rope_scaling=None, rope_theta=250000,
            sliding_window=None,
        ),
        export=NO_GGUF,
    ),
    "olmo 2": Base(
        llama(
            architectures=["Olmo2ForCausalLM"], model_type="olmo2", num_key_value_heads=4, attention_bias=False,
            attention_dropout=0.0, rope_scaling=None, rope_theta=500000, rms_norm_eps=1e-6, pad_token_id=1,
        ),
        export=NO_GGUF,
    ),
    "granite": Base(
        llama3(
            architectures=["GraniteForCausalLM"], model_type="granite", attention_multiplier=0.0625,
            embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, tie_word_embeddings=True,
        ),
        export=NO_GGUF,
    ),
    "cohere": Base(
        llama(
            architectures=["CohereForCausalLM"], model_type="cohere", num_key_value_heads=4, layer_norm_eps=1e-5,
            logit_scale=0.0625, rope_theta=8000000.0, use_qk_norm=False, attention_bias=False, attention_dropout=0.0,
            tie_word_embeddings=True, pad_token_id=0,
        ),
        export=NO_GGUF,
    ),
    "stablelm": Base(
        llama(
            architectures=["StableLmForCausalLM"], model_type="stablelm", num_key_value_heads=4, layer_norm_eps=1e-5,
            partial_rotary_factor=0.25, rope_theta=10000, use_qkv_bias=True, attention_dropout=0.0, hidden_dropout=0.0,
        ),
        train=NO_DOCUMENTS,
        export=NO_GGUF,
    ),
    "falcon": Base(
        {
            **SIZES, "architectures": ["FalconForCausalLM"], "model_type": "falcon", "alibi": False, "bias": False,
            "attention_dropout": 0.0, "hidden_dropout": 0.0, "layer_norm_epsilon": 1e-5, "multi_query": True,
            "new_decoder_architecture": False, "parallel_attn": True, "torch_dtype": "bfloat16",
            "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"}, "apply_residual_connection_post_layernorm": False,
        },
        train=NO_LIST,
        export=NO_GGUF,
    ),
    "pythia": Base(
        {
            **SIZES, "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu",
            "layer_norm_eps": 1e-5, "rotary_emb_base": 20000, "rotary_pct": 0.5, "tie_word_embeddings": False,
            "torch_dtype": "float16", "transformers_version": "4.24.0", "use_parallel_residual": True,
        },
        train=RENAMED,
        export=NO_GGUF,
    ),
    "llama 2, stretched": Base(
        llama(rope_scaling=None, pretraining_tp=1),
        options=("--max-tokens", 4 * LIMIT - 8, "--rope-scaling", "linear"),
        trained_as={"rope_scaling": {"type": "linear", "factor": 4.0}},
        context=4 * LIMIT - 8,
    ),
    "llama 1, stretched by yarn": Base(
        llama(max_sequence_length=LIMIT, pad_token_id=0),
        options=("--max-tokens", 3 * LIMIT, "--rope-scaling", "yarn"),
        trained_as={"rope_scaling": {"type": "yarn", "factor": 3.0, "original_max_position_embeddings": LIMIT}},
        context=3 * LIMIT,
    ),
    "qwen 3, stretched": Base(
        qwen3(),
        options=("--max-tokens", 2 * LIMIT, "--rope-scaling", "linear"),
        trained_as={"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        context=2 * LIMIT,
    ),
    "gemma 3, stretched": Base(
        gemma3(),
        options=("--max-tokens", 2 * LIMIT, "--rope-scaling", "linear"),
        train="--rope-scaling linear: its layers have no rotary embeddings, or those of several kinds",
        export=NO_GGUF,
    ),
    "phi 3, stretched": Base(
        phi3(original_max_position_embeddings=LIMIT, rope_scaling=None, sliding_window=None),
        options=("--max-tokens", 2 * LIMIT, "--rope-scaling", "linear"),
        train="--rope-scaling linear: `rope_parameters`'s type field must be one of ['longrope'], got linear",
        export=NO_GGUF,
    ),
    "a model of its own code": Base(
        llama(
            model_type="internlm2", architectures=["InternLM2ForCausalLM"], bias=False,
            auto_map={"AutoConfig": "configuration_internlm2.InternLM2Config"},
        ),
        train="its code comes with it (model type internlm2), and is not run here",
        export=NO_GGUF,
    ),
}  # fmt: skip


def make(name: str, folder: Path) -> Path:
    """A base with random weights, as transformers 5 names them, and its own JSON files. Norms and biases differ from 1 and 0."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    base = BASES[name]
    tiny.make(folder)
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(base.config, indent=2))
    if base.generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(base.generation, indent=2))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **base.tokenizer}))
    torch.manual_seed(0)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # not one that transformers 5 can read: whatever weights
        assert base.train != TRAINED
        return folder
    config.initializer_range = 0.2
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for tensor_name, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * (0.3 if tensor_name.endswith("bias") else 0.1))
    model.generation_config.pad_token_id = None  # transformers 5.17 would not save -1
    model.save_pretrained(folder.parent / "weights")
    return (folder.parent / "weights" / "model.safetensors").replace(folder / "model.safetensors").parent
