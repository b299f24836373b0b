"""A model's tokenizer, without transformers: its files, its special tokens and its stored chat template."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtools.files import cache
from vtools.models.configs import read_json
from vtools.models.quiet import quiet_transformers
from vtools.models.reference import model_folder
from vtools.process import Failure

if TYPE_CHECKING:
    import tokenizers

MAIN_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json")
FILES = (*MAIN_FILES, "special_tokens_map.json", "vocab.json", "merges.txt")
# The files to fetch from the hub if no weights are needed.
HUB_FILES = [*FILES, "*.jinja", "chat_template.json", "config.json", "generation_config.json"]


class Tokenizer:
    """The `tokenizers` backend and the names of its special tokens."""

    def __init__(self, folder: Path, files: Path) -> None:
        """`folder` is the model's folder; `files` contains tokenizer.json (the same, or a cached conversion)."""
        import tokenizers

        self.folder = folder
        try:
            self.backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json"))
        except Exception as error:
            raise Failure(f"{files / 'tokenizer.json'}: not a tokenizer: {error}") from None
        self.backend.no_padding()  # a training run's padding may be stored with it
        self.backend.no_truncation()
        config = read_json(files / "tokenizer_config.json") | read_json(folder / "tokenizer_config.json")
        special = read_json(folder / "special_tokens_map.json") | config
        self.bos, self.eos, self.pad = (_token(special.get(f"{name}_token")) for name in ("bos", "eos", "pad"))
        self.chat_template = chat_template(folder, config)
        generation = read_json(folder / "generation_config.json")
        self.stop_strings: list[str] = _one_or_more(generation, "stop_strings", str, folder)
        self.end_ids: list[int] = _one_or_more(generation, "eos_token_id", int, folder)

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def added(self) -> dict[str, tokenizers.AddedToken]:
        """The added tokens by their text, special or not."""
        return {token.content: token for token in self.backend.get_added_tokens_decoder().values()}

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that no text may produce."""
        return frozenset(number for number, token in self.backend.get_added_tokens_decoder().items() if token.special)

    def id_of(self, token: str) -> int | None:
        """The id of a token's text, if it is in the vocabulary."""
        return self.backend.token_to_id(token)

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Token ids to text."""
        return self.backend.decode(ids, skip_special_tokens=skip_special)

    def named(self, number: int) -> str:
        """The text of one token; of a special one, its name."""
        return self.decode([number], skip_special=False)


def load_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a model reference. Raises Failure if there is none.

    A SentencePiece `tokenizer.model` alone is converted once by transformers and kept in the cache.
    """
    place = model_folder(reference, HUB_FILES)
    if (place / "tokenizer.json").is_file():
        return Tokenizer(place, place)
    source = next((place / name for name in ("tokenizer.model", "vocab.json") if (place / name).is_file()), None)
    if source is None:
        raise Failure(f"{place}: no tokenizer.json, tokenizer.model or vocab.json; copy the tokenizer's files there")

    def make(target: Path) -> None:
        from transformers import AutoTokenizer

        quiet_transformers()
        try:
            AutoTokenizer.from_pretrained(place).save_pretrained(target)
        except Exception as error:
            raise Failure(f"{source}: cannot be converted: {error}") from None

    return Tokenizer(
        place, cache.made_once(source, "tokenizer-1:" + json.dumps(read_json(place / "tokenizer_config.json")), make)
    )


def chat_template(place: Path, config: dict[str, Any]) -> str | None:
    """The stored chat template: a file since transformers 4.52, before that a key of the config."""
    for name in ("chat_template.jinja", "chat_template.json"):
        path = place / name
        if path.is_file():
            if name.endswith("json"):
                config = read_json(path)
                break
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise Failure(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    value = config.get("chat_template")
    if isinstance(value, list):  # several templates, by name
        named = (entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default")
        value = next((entry.get("template") for entry in named), None)
    return value if isinstance(value, str) else None


def _one_or_more(settings: dict[str, Any], key: str, kind: type, folder: Path) -> list[Any]:
    """A setting of generation_config.json that is one value or a list of them, as a list. Raises Failure."""
    value = settings.get(key)
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    if not all(isinstance(one, kind) for one in values):
        what = "a text" if kind is str else "a number"
        raise Failure(f"{folder / 'generation_config.json'}: {key} is {value!r}, not {what} or a list; correct it")
    return values


def _token(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None
