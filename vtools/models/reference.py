"""A model reference (folder, hub id, .gguf file) to its folder, tokenizer and weights."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtools import process
from vtools.files import cache
from vtools.files.atomic import write
from vtools.models import pretokenizer
from vtools.process import Failure

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedModel

HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
HUB_PICKLED = ["pytorch_model*.bin"]  # only where there is no safetensors file, or each weight would come twice
TOKENIZER_FILES = ["*token*", "*.jinja", "config.json", "generation_config.json", "vocab.json", "merges.txt"]


def folder(reference: str, patterns: list[str] | None = None) -> Path:
    """The local folder behind a reference: the folder itself, a hub snapshot, or a GGUF file converted once.

    Raises Failure if there is no such model.
    """
    path = Path(reference)
    if path.is_dir():
        return path
    if path.suffix == ".gguf" and not path.is_file():
        raise Failure(f"{reference}: no such file")
    if path.is_file():
        with open(path, "rb") as stream:
            if path.suffix != ".gguf" and stream.read(4) != b"GGUF":
                raise Failure(
                    f"{reference}: not a model: name its folder (config.json, tokenizer, weights) or a .gguf file"
                )
        return _from_gguf(path)
    name, revision = hub_name(reference), reference.partition("@")[2]
    if name is None:
        raise Failure(f"{reference}: no such folder (a hub id looks like owner/name)")
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise Failure(f"{reference}: no such folder; for hub models: pip install 'vtools[hub]'") from None
    try:
        download = functools.partial(huggingface_hub.snapshot_download, name, revision=revision or None)
        place = Path(download(allow_patterns=patterns or HUB_FILES))
        if patterns is None and not any(place.glob("*.safetensors")):
            place = Path(download(allow_patterns=HUB_FILES + HUB_PICKLED))
        return place
    except Exception as error:  # the hub library has a dozen error classes; the first line of each says it all
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Failure(f"{reference}: no such folder, and the hub has not given it: {reason}") from None


def hub_name(reference: str) -> str | None:
    """The owner/name of a hub reference, without its revision; None for a path, there or not."""
    name = reference.removeprefix("hf:").partition("@")[0]
    shaped = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return name if shaped and not Path(reference).exists() else None


def _from_gguf(source: Path) -> Path:
    """Convert a GGUF file to an ordinary Hugging Face folder in bf16 (fp16 stays fp16), once."""

    def make(target: Path) -> None:
        try:
            import gguf
            import torch
            import transformers
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ModuleNotFoundError as error:
            raise process.missing_extra(error.name or "gguf", "train", f"{source}: reading GGUF") from None
        _quiet()
        try:
            reader = gguf.GGUFReader(source)
        except Exception as error:
            raise Failure(f"{source}: not a GGUF file that can be read: {error}") from None
        stored = {tensor.tensor_type for tensor in reader.tensors}
        half = gguf.GGMLQuantizationType.F16
        dtype = torch.float16 if half in stored and stored <= {half, gguf.GGMLQuantizationType.F32} else torch.bfloat16
        if stored == {gguf.GGMLQuantizationType.F32}:
            dtype = torch.float32
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=dtype)
        except Exception as error:  # whatever a file lacks that transformers looks for; 5.17 wants a bos token
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise Failure(f"{source}: transformers {transformers.__version__} cannot read it: {reason}") from None
        for name in ("bos", "eos", "padding"):  # transformers 5.17 takes the wrong end token from the file
            field = reader.fields.get(f"tokenizer.ggml.{name}_token_id")
            if field is not None:
                token = tokenizer.convert_ids_to_tokens(int(field.contents()))
                setattr(tokenizer, {"padding": "pad_token"}.get(name, f"{name}_token"), token)
        # The loaded model counts as quantised and will neither train nor save: give its weights to a fresh one.
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        fresh = AutoModelForCausalLM.from_config(config, dtype=dtype)
        fresh.load_state_dict(loaded.state_dict())
        fresh.generation_config = type(fresh.generation_config)(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)
        kind, known_as = (reader.fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
        if kind is not None and kind.contents() == "gpt2" and known_as is not None:
            _restore_pretokenizer(target / "tokenizer.json", str(known_as.contents()), source)

    return cache.made_once(source, "gguf-3", make)


def _restore_pretokenizer(path: Path, known_as: str, source: Path) -> None:
    """Have a byte-level tokenizer cut text as a GGUF file says; transformers follows only some of the names."""
    setup = read_json(path)
    if pretokenizer.restore(setup, known_as):
        path.write_text(json.dumps(setup, ensure_ascii=False), encoding="utf-8")
    else:
        print(
            f"{source}: it cuts text by llama.cpp's {known_as!r}, which is none that we know: token ids may differ "
            "from llama.cpp's; the model's own tokenizer.json would settle it",
            file=sys.__stderr__,
        )


class Tokenizer:
    """A tokenizer without transformers: the `tokenizers` backend and the names of its special tokens."""

    def __init__(self, folder: Path, files: Path) -> None:
        """`folder` is the model's folder; `files` holds tokenizer.json (the same, or a cached conversion)."""
        import tokenizers

        self.folder = folder
        try:
            self.backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json"))
        except Exception as error:
            raise Failure(f"{files / 'tokenizer.json'}: not a tokenizer: {error}") from None
        self.backend.no_padding()  # a training run's settings may be stored with it
        self.backend.no_truncation()
        config = read_json(files / "tokenizer_config.json") | read_json(folder / "tokenizer_config.json")
        special = read_json(folder / "special_tokens_map.json") | config
        self.bos, self.eos, self.pad = (_token(special.get(f"{name}_token")) for name in ("bos", "eos", "pad"))
        self.chat_template = chat_template(folder, config)
        generation = read_json(folder / "generation_config.json")
        stop = generation.get("stop_strings") or []
        self.stop_strings: list[str] = [stop] if isinstance(stop, str) else list(stop)
        ends = generation.get("eos_token_id")
        self.end_ids: list[int] = [ends] if isinstance(ends, int) else list(ends or [])

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def added(self) -> dict[str, tokenizers.AddedToken]:
        """The added tokens by their text: special ones and others."""
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


def tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a model reference. Raises Failure if there is none.

    A SentencePiece `tokenizer.model` alone is converted once by transformers and kept in the cache.
    """
    place = folder(reference, TOKENIZER_FILES)
    if (place / "tokenizer.json").is_file():
        return Tokenizer(place, place)
    source = next((place / name for name in ("tokenizer.model", "vocab.json") if (place / name).is_file()), None)
    if source is None:
        raise Failure(f"{place}: no tokenizer.json, tokenizer.model or vocab.json; put the tokenizer's files there")

    def make(target: Path) -> None:
        try:
            from transformers import AutoTokenizer
        except ModuleNotFoundError:
            raise process.missing_extra("transformers", "train", f"{source}: converting this tokenizer") from None
        _quiet()
        try:
            AutoTokenizer.from_pretrained(place).save_pretrained(target)
        except Exception as error:
            raise Failure(f"{source}: cannot be converted: {error}") from None

    return Tokenizer(
        place, cache.made_once(source, "tokenizer-1:" + json.dumps(read_json(place / "tokenizer_config.json")), make)
    )


def load(reference: str, dtype: str = "float32", **options: Any) -> PreTrainedModel:
    """The model in evaluation mode on the CPU, weights in `dtype` (float32, bfloat16, float16). Raises Failure."""
    place = folder(reference)
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ModuleNotFoundError as error:
        raise process.missing_extra(error.name or "torch", "train", f"{reference}: loading weights") from None
    _quiet()
    if not (place / "config.json").is_file():
        raise Failure(f"{reference}: no config.json in {place}")
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Failure(f"{reference}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    return model.eval()


def fit_config(folder: Path, dtype: str | None, rows: int | None = None) -> None:
    """Make a model's config.json say what its weights are: their dtype (as in safetensors), the embedding's rows."""
    path = folder / "config.json"
    if not path.is_file():
        return
    config = read_json(path)
    if rows is not None and config.get("vocab_size") is not None:
        config["vocab_size"] = rows
    name = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}.get(dtype or "")
    if name:  # `torch_dtype` before transformers 5
        config["dtype" if "dtype" in config else "torch_dtype"] = name
    write(path, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())


def _quiet() -> None:
    """transformers reports loading on stderr, bars and all; our tools say what matters themselves."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file. Raises Failure if the file holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Failure(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Failure(f"{path}: not a JSON object")
    return value


def _token(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def chat_template(place: Path, config: dict[str, Any]) -> str | None:
    """The stored chat template: its own file since transformers 4.52, a key of the config before."""
    for name in ("chat_template.jinja", "chat_template.json"):
        path = place / name
        if path.is_file():
            return path.read_text(encoding="utf-8") if name.endswith("jinja") else read_json(path).get("chat_template")
    value = config.get("chat_template")
    if isinstance(value, list):  # several, by name
        value = next((entry["template"] for entry in value if entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None
