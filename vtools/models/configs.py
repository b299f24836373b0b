"""A model's JSON files: reading them, and updating config.json to match the weights."""

import json
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


def fit_config(folder: Path, dtype: str | None, rows: int | None = None) -> None:
    """Update a model's config.json to match its weights: dtype, and rows of the embedding."""
    path = folder / "config.json"
    if not path.is_file():
        return
    config = read_json(path)
    if rows is not None and config.get("vocab_size") is not None:
        config["vocab_size"] = rows
    if dtype in TORCH_NAMES:  # `torch_dtype` before transformers 5
        config["dtype" if "dtype" in config else "torch_dtype"] = TORCH_NAMES[dtype]
    write(path, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
