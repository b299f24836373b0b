"""A model as safetensors again: floats in another dtype, files of at most a given size."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtools import checkpoint, dtypes, jsonl, model, staging, tensor_files
from vtools.checkpoint import STEP, Files, Tensor
from vtools.dtypes import Bytes
from vtools.process import Failure, UsageFailure

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor and the dtype that it gets."""

    tensor: Tensor
    dtype: str

    @property
    def bytes(self) -> int:
        if self.dtype == self.tensor.dtype:
            return self.tensor.bytes
        return math.prod(self.tensor.shape) * checkpoint.WIDTHS[self.dtype]

    def chunks(self, files: Files) -> Iterator[Bytes]:
        """Its bytes in that dtype. Raises Failure for a value that the dtype turns into infinity."""
        for start, length in checkpoint.pieces(self.tensor.bytes, STEP):
            raw = dtypes.empty(length)
            files.read(self.tensor.file, self.tensor.start + start, raw.data)
            made = dtypes.convert(raw, self.tensor.dtype, self.dtype)
            changed = self.dtype != self.tensor.dtype
            if changed and not dtypes.finite(made, self.dtype) and dtypes.finite(raw, self.tensor.dtype):
                where = f"{self.tensor.file}: tensor {self.tensor.name}"
                advice = "--dtype bf16 or fp32 holds it" if self.dtype == "F16" else "leave --dtype out"
                raise Failure(f"{where}: a value beyond the range of {self.dtype}; {advice}")
            yield made

    def line(self) -> dict[str, Any]:
        """What stdout says of it."""
        shape = list(self.tensor.shape)
        return {"tensor": self.tensor.name, "type": self.dtype.lower(), "shape": shape, "bytes": self.bytes}


def size(text: str) -> int:
    """Bytes of "5GB", "500MB", "1GiB" or a plain number. Raises UsageFailure."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?I?)B?", text.strip().upper())
    number = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if number < 1:
        raise UsageFailure(f"--max-shard {text}: not a size; write 5GB, 500MB or 1GiB")
    return number


def write(
    folder: Path, out: Path, dtype: str | None, largest: int, jobs: int, force: bool, quiet: bool, dry_run: bool
) -> None:
    """Write the model in `folder` as the folder `out`; stdout gets a line a tensor and one with the totals."""
    staging.check(out, [folder], force)
    inputs = staging.fingerprint([folder])
    tensors = checkpoint.tensors(folder).values()
    parts = [
        Part(tensor, dtypes.NAMES[dtype] if dtype and tensor.dtype in dtypes.FLOATS else tensor.dtype)
        for tensor in tensors
    ]
    shards = _shards(parts, largest)
    files, left_out = checkpoint.model_files(folder)
    carried = [path for path in files if not checkpoint.about_weights(path)]
    read = {tensor.file for tensor in tensors}
    left_out += [path for path in files if checkpoint.looks_like_weights(path) and folder / path not in read]
    if left_out and not quiet:
        print(f"vtools export: not part of the model, left out: {', '.join(left_out)}", file=sys.stderr)
    weights = sum(part.bytes for part in parts)
    total = weights + sum(len(_header(shard)) for shard in shards.values())
    free = staging.check_space(out, total + sum((folder / path).stat().st_size for path in carried))
    totals = {"tensors": len(parts), "bytes": total, "type": dtype, "files": len(shards), "out": str(out)}
    if dry_run:
        with jsonl.output(None) as lines:
            for part in parts:
                lines.write(part.line())
            lines.write({"dry_run": True, **totals, "free": free})
        return
    tensor_files.reuse_memory()
    making = f"safetensors {dtype} {largest} {inputs}"
    with (
        jsonl.output(None) as lines,
        staging.folder(out, [folder], force, making) as work,
        jsonl.progress("export", quiet, weights, "B") as tick,
    ):
        pieces = []
        for name, shard in shards.items():
            header = _header(shard)
            tensor_files.allocate(work.fresh / name, len(header) + sum(part.bytes for part in shard))
            with open(work.fresh / name, "r+b") as stream:
                stream.write(header)
            start = len(header)
            for part in shard:
                about = {"type": part.dtype.lower(), "shape": list(part.tensor.shape)}
                pieces.append(tensor_files.Part(part.tensor.name, name, start, part.bytes, part.chunks, about=about))
                start += part.bytes
        written = tensor_files.write(pieces, work, jobs, lines, tick)
        for path in carried:
            staging.copy(folder / path, work.fresh / path)
        if dtype:
            model.fit_config(work.fresh, dtypes.NAMES[dtype])
        if len(shards) > 1:
            places = {part.tensor.name: name for name, shard in shards.items() for part in shard}
            checkpoint.write_index(work.fresh, places, weights)
        staging.unchanged([folder], inputs)
    with jsonl.output(None) as lines:
        lines.write({**totals, "reused": written.reused})
    if not quiet:
        print(f"vtools export: {out}: {len(parts)} tensors in {len(shards)} files, {total:,} bytes", file=sys.stderr)


def _shards(parts: list[Part], largest: int) -> dict[str, list[Part]]:
    """Tensors by the file they go to, in their order, no file larger than allowed. Raises Failure for one that is."""
    shards: list[list[Part]] = []
    filled = largest
    for part in parts:
        entry = len(_header([part]))  # more than what it adds to the header of several
        if part.bytes + entry > largest:
            raise Failure(
                f"tensor {part.tensor.name}: {part.bytes:,} bytes, more than --max-shard {largest:,} can hold"
            )
        if filled + part.bytes + entry > largest:
            shards.append([])
            filled = 64  # offsets grow longer as the file does
        shards[-1].append(part)
        filled += part.bytes + entry + 16
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards, 1)}


def _header(shard: list[Part]) -> bytes:
    entries = ((part.tensor.name, part.dtype, part.tensor.shape, part.bytes) for part in shard)
    return checkpoint.header(entries, {"format": "pt"})
