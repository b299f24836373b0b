"""A model as safetensors again: floats in another dtype, files of at most a given size."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vtools import checkpoint, dtypes, jsonl, staging
from vtools.checkpoint import Files, Tensor
from vtools.dtypes import Bytes
from vtools.export import conversion
from vtools.process import Failure, UsageFailure

DTYPES = {"fp16": ("F16", "float16"), "bf16": ("BF16", "bfloat16"), "fp32": ("F32", "float32")}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
# Weights of any library, and what lists them: none of it describes the files written here.
WEIGHTS = (".safetensors", ".bin", ".index.json", ".pt", ".pth", ".h5", ".msgpack", ".gguf")


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
    parts = [
        Part(tensor, DTYPES[dtype][0] if dtype and tensor.dtype in dtypes.FLOATS else tensor.dtype)
        for tensor in checkpoint.tensors(folder).values()
    ]
    shards = _shards(parts, largest)
    files, left_out = checkpoint.model_files(folder)
    carried = [path for path in files if not path.endswith(WEIGHTS)]
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
    making = f"safetensors {dtype} {largest} {staging.fingerprint([folder])}"
    with jsonl.output(None) as lines, staging.folder(out, [folder], force, making) as work:
        with Files() as opened, jsonl.progress("export", quiet, sum(part.tensor.bytes for part in parts), "B") as tick:
            for name, shard in shards.items():
                if name in work.done:  # by an interrupted run
                    for part in shard:
                        lines.write({**part.line(), "ms": 0})
                    continue
                with open(work.fresh / name, "wb") as stream:
                    _write_shard(stream, shard, opened, jobs, lines, tick)
                work.finish(name)
        for path in carried:
            (work.fresh / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, work.fresh / path)
            jsonl.sync(work.fresh / path)
        if dtype:
            _note_dtype(work.fresh / "config.json", DTYPES[dtype][1])
        if len(shards) > 1:
            where = {part.tensor.name: name for name, shard in shards.items() for part in shard}
            _save(
                work.fresh / "model.safetensors.index.json",
                {"metadata": {"total_size": weights}, "weight_map": where},
            )
    with jsonl.output(None) as lines:
        lines.write(totals)
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


def _write_shard(
    stream: IO[bytes], shard: list[Part], files: Files, jobs: int, lines: jsonl.Output, tick: Callable[[int], Any]
) -> None:
    stream.write(_header(shard))
    started = time.monotonic()
    for (part, raw, last), converted in conversion.in_order(_blocks(shard, files), _convert, jobs):
        stream.write(converted.data)
        tick(len(raw))
        if last:
            lines.write({**part.line(), "ms": round((time.monotonic() - started) * 1000)})
            started = time.monotonic()
    stream.flush()
    os.fsync(stream.fileno())


def _blocks(shard: list[Part], files: Files) -> Iterator[tuple[Part, Bytes, bool]]:
    for part in shard:
        tensor = part.tensor
        if not tensor.bytes:
            yield part, dtypes.empty(0), True
        for start, length in checkpoint.pieces(tensor.bytes, conversion.BLOCK):
            raw = dtypes.empty(length)
            files.read(tensor.file, tensor.start + start, raw.data)
            yield part, raw, start + length == tensor.bytes


def _convert(block: tuple[Part, Bytes, bool]) -> Bytes:
    part, raw, _ = block
    return dtypes.convert(raw, part.tensor.dtype, part.dtype)


def _note_dtype(path: Path, name: str) -> None:
    """Give config.json the new dtype, under the name it has there: `torch_dtype` before transformers 5."""
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        config["dtype" if "dtype" in config else "torch_dtype"] = name
        _save(path, config)


def _save(path: Path, value: dict[str, Any]) -> None:
    with jsonl.atomic(path) as stream:
        stream.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
