"""Export to safetensors: floats in another dtype, files of limited size."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtools.files import staging
from vtools.models.configs import fit_config
from vtools.process import Failure, UsageFailure, say
from vtools.records import jsonl
from vtools.weights import dtypes, model_files, writing
from vtools.weights.dtypes import Bytes
from vtools.weights.tensor import DTYPE_NAMES, WIDTHS, Files, Tensor, dtype_name
from vtools.weights.writing import NewTensor

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def _entry(tensor: Tensor, dtype: str) -> NewTensor:
    """A tensor in another dtype. Its chunks raise Failure for a value beyond the range of that dtype."""

    def chunks(files: Files) -> Iterator[Bytes]:
        for raw in files.chunks_of(tensor):
            made = dtypes.convert(raw, tensor.dtype, dtype)
            if dtype != tensor.dtype and not dtypes.finite(made, dtype) and dtypes.finite(raw, tensor.dtype):
                advice = "--dtype bf16 or fp32 holds it" if dtype == "F16" else "leave --dtype out"
                beyond = f"a value beyond the range of {dtype_name(dtype)}; {advice}"
                raise Failure(f"{tensor.file}: tensor {tensor.name}: {beyond}")
            yield made

    size = tensor.bytes if dtype == tensor.dtype else math.prod(tensor.shape) * WIDTHS[dtype]
    return NewTensor(tensor.name, dtype, tensor.shape, size, chunks)


def _about(entry: NewTensor) -> dict[str, Any]:
    """The dtype and shape for the line of a tensor."""
    return {"type": dtype_name(entry.dtype), "shape": list(entry.shape)}


def size(text: str) -> int:
    """Bytes of "5GB", "500MB", "1GiB" or a plain number. Raises UsageFailure."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?I?)B?", text.strip().upper())
    number = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if number < 1:
        raise UsageFailure(f"--max-shard {text}: not a size; write 5GB, 500MB or 1GiB")
    return number


def write(
    folder: Path, out: Path, *, dtype: str | None, largest: int, jobs: int, force: bool, quiet: bool, dry_run: bool
) -> None:
    """Write the model in `folder` as the folder `out`; stdout gets one line per tensor and one with the totals."""
    staging.check(out, [folder], force)
    inputs = staging.fingerprint([folder])
    tensors = model_files.tensors(folder).values()
    entries = [
        _entry(tensor, DTYPE_NAMES[dtype] if dtype and tensor.dtype in dtypes.FLOATS else tensor.dtype)
        for tensor in tensors
    ]
    shards = _shards(entries, largest)
    files, left_out = model_files.model_files(folder)
    carried = [path for path in files if not model_files.about_weights(path)]
    read = {tensor.file for tensor in tensors}
    left_out += [path for path in files if model_files.looks_like_weights(path) and folder / path not in read]
    if left_out and not quiet:
        say("export", f"not part of the model, left out: {', '.join(left_out)}")
    weights = sum(entry.bytes for entry in entries)
    total = weights + sum(len(writing.header(shard)) for shard in shards.values())
    free = staging.check_space(out, total + sum((folder / path).stat().st_size for path in carried))
    totals = {"tensors": len(entries), "bytes": total, "type": dtype, "files": len(shards), "out": str(out)}
    if dry_run:
        with jsonl.output(None) as lines:
            for entry in entries:
                lines.write({"tensor": entry.name, **_about(entry), "bytes": entry.bytes})
            lines.write({"dry_run": True, **totals, "free": free})
        return
    writing.reuse_memory()
    making = f"safetensors {dtype} {largest} {inputs}"
    with (
        jsonl.output(None) as lines,
        staging.folder(out, [folder], force, making) as work,
        jsonl.progress("export", quiet, weights, "B") as tick,
    ):
        parts = writing.begin(shards, work)
        for part, entry in zip(parts, entries, strict=True):
            part.about = _about(entry)
        written = writing.write(parts, work, jobs, lines, tick)
        for path in carried:
            staging.copy(folder / path, work.fresh / path)
        if dtype:
            fit_config(work.fresh, dtype)
        staging.unchanged([folder], inputs)
    with jsonl.output(None) as lines:
        lines.write({**totals, "reused": written.reused})
    if not quiet:
        say("export", f"{out}: {len(entries)} tensors in {len(shards)} files, {total:,} bytes")


def _shards(entries: list[NewTensor], largest: int) -> dict[str, list[NewTensor]]:
    """Tensors in order, grouped into files of at most `largest` bytes. Raises Failure for a tensor that is larger."""
    shards: list[list[NewTensor]] = []
    filled = largest
    for entry in entries:
        needed = entry.bytes + len(writing.header([entry]))  # more than its share in a larger file
        if needed > largest:
            raise Failure(
                f"tensor {entry.name}: {entry.bytes:,} bytes, more than --max-shard {largest:,} can hold; raise it"
            )
        if filled + needed > largest:
            shards.append([])
            filled = 64  # spare bytes: offsets get longer in a larger file
        shards[-1].append(entry)
        filled += needed + 16
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards, 1)}
