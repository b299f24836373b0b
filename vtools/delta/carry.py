"""The files of a model that are not weights: carried along, hashed, made to fit the weights."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vtools import model, template
from vtools.checkpoint import STEP
from vtools.process import Failure
from vtools.template import Template

IDENTITY = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json")


def copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file and make its folders; its size and SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while data := reader.read(STEP):
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


def check_vocabulary(place: Path, rows: int) -> None:
    """Raise Failure if a tokenizer has ids beyond the rows of the embedding."""
    last = -1
    path = place / "added_tokens.json"
    if path.is_file():
        last = max((number for number in model.read_json(path).values() if isinstance(number, int)), default=-1)
    if (place / "tokenizer.json").is_file():
        path = place / "tokenizer.json"
        last = max(last, *model.Tokenizer(place, place).backend.get_vocab(with_added_tokens=True).values(), -1)
    if last >= rows:
        raise Failure(f"{path}: its last token has the id {last}, the embedding has only {rows} rows: they do not fit")


def load_template(place: Path, name: str) -> Template:
    """A chat template for the tokenizer in a folder. Raises Failure if they do not go together."""
    return template.load(name, model.tokenizer(str(place)))
