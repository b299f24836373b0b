"""A model's JSON files: reading them, and updating config.json to match the weights."""

import json
import math
from pathlib import Path
from typing import Any

from vtools.files.atomic import write
from vtools.process import Failure

# Names of dtypes: the user's, and those of config.json and torch.
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no file. Raises Failure if the file contains anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Failure(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Failure(f"{path}: not a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object for people to read, whole or not at all."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def fit_config(folder: Path, dtype: str | None, rows: int | None = None) -> None:
    """Update a model's config.json to match its weights: dtype, and rows of the embedding."""
    path = folder / "config.json"
    if not path.is_file():
        return
    config = read_json(path)
    if rows is not None and config.get("vocab_size") is not None:
        config["vocab_size"] = rows
    if dtype in TORCH_NAMES:  # `torch_dtype` before transformers 5
        for key in {"dtype", "torch_dtype"}.intersection(config) or ("torch_dtype",):
            config[key] = TORCH_NAMES[dtype]
    write_json(path, config)


# Settings of generation_config.json that only sampling and only beams have, and the values that are as none.
_SAMPLING = {
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
_BEAMS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "constraints", "force_words_ids")


def generation_settings(base: dict[str, Any]) -> dict[str, Any]:
    """A base's generation_config.json for a model made from it, in a form that transformers loads and saves again.

    Where the base says `do_sample: false`, or a temperature of 0, sampling settings go; where it has some and does not
    say (as LLaMA's own file), it samples. transformers refuses to save either as they are (GenerationConfig.validate).
    """
    made = {key: value for key, value in base.items() if value is not None and (key, value) != ("min_p", 0)}
    made.pop("_from_model_config", None)  # such a file gives way to config.json, with the base's end tokens
    if made.get("do_sample") is False or made.get("temperature") == 0:
        made = {key: value for key, value in made.items() if key not in _SAMPLING} | {"do_sample": False}
    elif any(made.get(key, neutral) != neutral for key, neutral in _SAMPLING.items()):
        made["do_sample"] = True
    if made.get("num_beams", 1) == 1:
        made = {key: value for key, value in made.items() if key not in _BEAMS}
    if isinstance(pad := made.get("pad_token_id"), int) and pad < 0:
        del made["pad_token_id"]
    return made | {"use_cache": True}


def number(config: dict[str, Any], key: str) -> Any:
    """A number in a config.json; None where it does not say. Raises Failure for anything else."""
    value = config.get(key)
    if value is None or (type(value) in (int, float) and math.isfinite(value)):  # bool is an int to isinstance
        return value
    raise Failure(f"config.json: {key} is {value!r}, not a number; correct it")


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of a text model's config.json, in one form: those of layers with full attention.

    They are `rope_parameters` since transformers 5; `rope_theta` and `rope_scaling`, its kind named `type`, before.
    """
    old, rope = (
        given if isinstance(given := config.get(key), dict) else {} for key in ("rope_scaling", "rope_parameters")
    )
    kinds = {name: settings for name, settings in rope.items() if isinstance(settings, dict)}  # by kind of layer
    rope = (kinds.get("full_attention") or next(iter(kinds.values()))) if kinds else rope
    made = {"rope_theta": config.get("rope_theta") or 10000.0, **old, **rope}
    return made | {"rope_type": made.get("rope_type") or made.get("type") or "default"}


def context_limit(config: dict[str, Any]) -> int | None:
    """The longest text, in tokens, that a text model's config.json allows; None where it does not say.

    With linear scaling, as in Vicuna 16k, the stated limit is the one before it: what vLLM makes of it is the smallest
    that is stated, times the factor. With yarn, it is the original one times the factor. Gemma 3 states the last one.
    Raises Failure for a setting that is not a number.
    """
    stated: int | None = number(config, "max_position_embeddings")
    if stated is None or stated < 1:
        return None
    rope = rope_settings(config)
    if str(config.get("model_type")).startswith("gemma3") or rope["rope_type"] not in ("linear", "yarn"):
        return stated
    if rope["rope_type"] == "linear":
        before = min(stated, number(config, "max_sequence_length") or stated)
    else:
        before = number(rope, "original_max_position_embeddings") or stated
    return max(stated, int(before * (number(rope, "factor") or 1)))


CODE = "auto_map"  # names the code of a model or tokenizer, which is not copied
_ORIGIN = {"_name_or_path", "transformers_version"}


def in_both_forms(config: dict[str, Any], base: dict[str, Any] | None = None) -> dict[str, Any]:
    """A config.json with dtype and rotary settings under the names of transformers 5 and of those before it.

    Version 4.57 reads `rope_parameters` without a warning as if they were not there. Other settings of the `base`
    that transformers 5 renames or leaves out are kept as they were.
    """
    base = base or {}
    kept = base if base.get("model_type") == config.get("model_type") else {}
    made = {key: value for key, value in kept.items() if key not in _ORIGIN} | config
    made.pop(CODE, None)
    if dtype := config.get("dtype") or config.get("torch_dtype"):
        made |= {"dtype": dtype, "torch_dtype": dtype}
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not rope:
        return made
    main = rope_settings({"rope_parameters": rope})
    theta, part = main.pop("rope_theta"), main.pop("partial_rotary_factor", None)
    made["rope_theta"] = theta
    if part is not None:
        made["partial_rotary_factor"] = part
    if isinstance(local := rope.get("sliding_attention"), dict):
        made["rope_local_base_freq"] = local.get("rope_theta")
    made["rope_scaling"] = main if main["rope_type"] != "default" else None
    return made
