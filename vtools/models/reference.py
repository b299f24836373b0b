"""From a model reference (a folder, a hub id, a .gguf file) to its local folder."""

import functools
from pathlib import Path

from vtools.models import gguf
from vtools.process import Failure, install

HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
HUB_PICKLED = ["pytorch_model*.bin"]  # only without safetensors files, or each weight would be downloaded twice


def model_folder(reference: str, patterns: list[str] | None = None) -> Path:
    """The local folder of a reference: the folder itself, a hub snapshot, or a GGUF file converted once.

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
        return gguf.converted(path)
    name, revision = hub_name(reference), reference.partition("@")[2]
    if name is None:
        raise Failure(f"{reference}: no such folder (a hub id looks like owner/name)")
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise Failure(f"{reference}: no such folder; for hub models: {install('hub')}") from None
    try:
        download = functools.partial(huggingface_hub.snapshot_download, name, revision=revision or None)
        place = Path(download(allow_patterns=patterns or HUB_FILES))
        if patterns is None and not any(place.glob("*.safetensors")):
            place = Path(download(allow_patterns=HUB_FILES + HUB_PICKLED))
        return place
    except Exception as error:  # the hub library has a dozen error classes; their first line suffices
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Failure(f"{reference}: no such folder, and not available on the hub: {reason}") from None


def hub_name(reference: str) -> str | None:
    """The owner/name of a hub reference, without its revision; None for a path, existing or not."""
    name = reference.removeprefix("hf:").partition("@")[0]
    shaped = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return name if shaped and not Path(reference).exists() else None
