"""The files of a model, those with its weights, and their tensors."""

import os
from pathlib import Path, PurePosixPath

import orjson

from vtools.files.atomic import write
from vtools.process import Failure
from vtools.records import jsonl
from vtools.weights import pickled, safetensors
from vtools.weights.tensor import Tensor

BUFFERS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "attention.masked_bias")
PICKLED = (".bin", ".pt", ".pth")


def read(file: Path) -> list[Tensor]:
    """The tensors of a safetensors or PyTorch (.bin) file, in the order of their bytes. Raises Failure."""
    with open(file, "rb") as stream:
        # A safetensors file may begin with these bytes too, as the length of its header.
        zipped = stream.read(4) == b"PK\3\4" and file.suffix != ".safetensors"
    if zipped or file.suffix in PICKLED:
        return sorted(pickled.tensors(file), key=lambda tensor: (tensor.start, -tensor.bytes, tensor.name))
    return safetensors.tensors(file)


def tensors(place: Path) -> dict[str, Tensor]:
    """Every tensor of a model (a folder or a single file) by name, however it is sharded. Raises Failure.

    If a tensor is in several files, the last one counts, as in transformers.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(place):
        for tensor in read(file):
            found[tensor.name] = tensor
    return found


def weight_files(place: Path) -> list[Path]:
    """The files of a model's weights, found as transformers does. Raises Failure if there are none.

    Safetensors before .bin; for each, a single file before those listed in an index; else all files of weights.
    """
    if place.is_file():
        return [place]
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = place / f"{whole}.index.json"
        if (place / whole).is_file():
            return [place / whole]
        if index.is_file():
            try:
                names = sorted(set(jsonl.loads(index.read_bytes())[0]["weight_map"].values()))
            except (jsonl.Reject, KeyError, TypeError, AttributeError):
                names = []
            if not names or not all(isinstance(name, str) and inside(name) for name in names):
                raise Failure(f"{index}: not an index of weight files")
            files = [place / name for name in names]
            for file in files:
                if not file.is_file():
                    raise Failure(f"{file}: missing, but listed in {index.name}")
            return files
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        if files := sorted(place.glob(pattern)):
            return files
    raise Failure(f"{place}: no weights: neither *.safetensors nor pytorch_model*.bin")


def write_index(folder: Path, files: dict[str, str], size: int) -> None:
    """Write the index of a model in several safetensors files: the file of each tensor, and the total bytes."""
    index = {"metadata": {"total_size": size}, "weight_map": files}
    write(folder / "model.safetensors.index.json", orjson.dumps(index, option=orjson.OPT_INDENT_2) + b"\n")


def is_buffer(name: str) -> bool:
    """Whether a tensor is a buffer: computed from the configuration, but stored by old versions of transformers."""
    return name.endswith(BUFFERS)


def holds_weights(file: Path) -> bool:
    """Whether to read a file's tensors: safetensors, and .bin files named like weights or containing tensors."""
    if looks_like_weights(file.name):
        return True
    try:
        return file.suffix in PICKLED and bool(read(file))
    except Failure:  # training_args.bin and the like contain other objects, which should not be unpickled
        return False


def looks_like_weights(name: str) -> bool:
    """Whether a file's name is that of a model's weights."""
    suffix = Path(name).suffix
    return suffix == ".safetensors" or (suffix in PICKLED and Path(name).name.startswith("pytorch_model"))


def about_weights(name: str) -> bool:
    """Whether a file name is that of weights of any library, or of an index of them."""
    return name.endswith((".safetensors", ".index.json", ".h5", ".msgpack", ".gguf", *PICKLED))


def inside(path: str) -> bool:
    """Whether a relative path from an untrusted file stays inside its folder."""
    parts = PurePosixPath(path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts and "\0" not in path


def model_files(folder: Path) -> tuple[list[str], list[str]]:
    """Paths (relative, sorted) of a model's files, and of what is not part of the model.

    Not part of it are hidden files (.git, .cache, .env, but not .gitattributes), checkpoints of a training run and
    half-written files (.part). Raises Failure for a link that leads nowhere and for a name that is not UTF-8, OSError
    for a folder that cannot be read.
    """
    if folder.is_file():
        return [folder.name], []
    files, left_out = [], []

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        place = Path(root)
        for name in sorted(folders):
            if name.startswith((".", "checkpoint")) or (place / name).is_symlink():
                left_out.append(str((place / name).relative_to(folder)))
                folders.remove(name)
        for name in sorted(names):
            path = place / name
            if name.endswith(".part") or (name.startswith(".") and name != ".gitattributes"):
                if name != ".lock":  # train's lock file: not worth reporting
                    left_out.append(str(path.relative_to(folder)))
                continue
            if not path.exists():
                raise Failure(f"{path}: a broken symbolic link; remove it")
            try:
                str(path.relative_to(folder)).encode()
            except UnicodeEncodeError:
                raise Failure(f"{str(path)!r}: its name is not UTF-8; rename it") from None
            if path.is_file():
                files.append(str(path.relative_to(folder)))
    return sorted(files), left_out
