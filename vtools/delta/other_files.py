"""The files of a model that are not weights: copied, hashed, adapted to the weights."""

import hashlib
from pathlib import Path

from vtools.models.configs import read_json
from vtools.models.template import Template, load_template
from vtools.models.tokenizer import MAIN_FILES, Tokenizer, load_tokenizer
from vtools.process import Failure

IDENTITY = ("config.json", *MAIN_FILES)


def hashes(place: Path) -> dict[str, str]:
    """SHA-256 of a model's configuration and tokenizer files, as far as they exist."""
    found = {}
    for name in IDENTITY:
        if (place / name).is_file():
            with open(place / name, "rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def check_vocabulary(place: Path, rows: int) -> None:
    """Raise Failure if a tokenizer has ids beyond the rows of the embedding."""
    added = read_json(place / "added_tokens.json").values()
    ids = {"added_tokens.json": [number for number in added if isinstance(number, int)]}
    if (place / "tokenizer.json").is_file():
        ids["tokenizer.json"] = list(Tokenizer(place, place).backend.get_vocab(with_added_tokens=True).values())
    last, path = max((number, place / name) for name, numbers in ids.items() for number in [-1, *numbers])
    if last >= rows:
        raise Failure(f"{path}: its last token has id {last}, the embedding has only {rows} rows: wrong tokenizer")


def template_for(place: Path, name: str) -> Template:
    """A chat template for the tokenizer in a folder. Raises Failure if they do not match."""
    return load_template(name, load_tokenizer(str(place)))
