"""The files of a model that are not weights: carried along, hashed, made to fit the weights."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vtools import jsonl, model, template
from vtools.process import Failure
from vtools.template import Template

IDENTITY = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json")


def copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file and make its folders; its size and SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while data := reader.read(1 << 20):
            sha256.update(data)
            writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())
    return target.stat().st_size, sha256.hexdigest()


def hashes(place: Path) -> dict[str, str]:
    """SHA-256 of a model's configuration and tokenizer files, those it has."""
    found = {}
    for name in IDENTITY:
        if (place / name).is_file():
            with open(place / name, "rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def fit_config(place: Path, rows: int | None, dtype: str | None) -> None:
    """Make config.json say what the weights are: `rows` of the embedding, their dtype (as in safetensors)."""
    path = place / "config.json"
    if not path.is_file():
        return
    config = read_json(path)
    if rows is not None and config.get("vocab_size") not in (None, rows):
        config["vocab_size"] = rows
    name = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}.get(dtype or "")
    for key in ("dtype", "torch_dtype"):
        if name and key in config:
            config[key] = name
    with jsonl.atomic(path) as stream:
        stream.write((json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())


def check_vocabulary(place: Path, rows: int) -> None:
    """Raise Failure if a tokenizer has ids beyond the rows of the embedding."""
    last = -1
    path = place / "added_tokens.json"
    if path.is_file():
        last = max((number for number in read_json(path).values() if isinstance(number, int)), default=-1)
    if (place / "tokenizer.json").is_file():
        path = place / "tokenizer.json"
        last = max(last, *model.Tokenizer(place, place).backend.get_vocab(with_added_tokens=True).values(), -1)
    if last >= rows:
        raise Failure(f"{path}: its last token has the id {last}, the embedding has only {rows} rows: they do not fit")


def load_template(place: Path, name: str) -> Template:
    """A chat template for the tokenizer in a folder. Raises Failure if they do not go together."""
    return template.load(name, model.tokenizer(str(place)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises Failure if the file holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    except ValueError:
        pass
    raise Failure(f"{path}: not a JSON object")
