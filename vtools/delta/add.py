"""apply-delta for deltas without a manifest, as FastChat published them: result = base + delta, in the delta's dtype.

The layout follows the delta's files. A tensor with more rows than the base has (Vicuna v0 added [PAD]) takes the extra
rows from the delta alone, the rule of FastChat 0.1.10, which made those deltas. Nothing says which base is the right
one, so what can be told from the numbers is checked: see `_looks_like_a_model`.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

import numpy as np  # noqa: TID253  imported lazily by the command
from blake3 import blake3

from vtools import checkpoint, dtypes, jsonl, staging
from vtools.checkpoint import Files, Tensor
from vtools.delta import bits
from vtools.delta.make import copy
from vtools.process import Failure


def add(base: Path, delta: Path, out: Path, force: bool, quiet: bool, dry_run: bool) -> None:
    """Write base + delta as the folder `out`; stdout gets a line a tensor and one with the totals. Raises Failure."""
    staging.check(out, [base, delta], force)
    paths, _ = checkpoint.model_files(delta)
    weights = {path: checkpoint.read_header(delta / path) for path in paths if path.endswith(".safetensors")}
    if not weights:
        raise checkpoint.no_weights(delta)
    tensors = checkpoint.tensors(base)
    changes = [tensor for _, group in weights.values() for tensor in group]
    _check(base, delta, tensors, changes)
    carried = {path: delta / path for path in paths if path not in weights}
    # FastChat takes the configuration from the base; a delta's own one knows about added rows.
    for name in ("config.json", "generation_config.json"):
        if name not in carried and (base / name).is_file():
            carried[name] = base / name
    size = sum((delta / path).stat().st_size for path in weights)
    size += sum(source.stat().st_size for source in carried.values())
    free = staging.check_space(out, size)
    if dry_run:
        with jsonl.output(None) as lines:
            names = {"base": str(base), "delta": str(delta), "out": str(out)}
            lines.write({"dry_run": True, "tensors": len(changes), "bytes": size, **names, "free": free})
        return
    if not quiet:
        print(f"vtools apply-delta: {delta}: no delta.json: adding; no base or result hash to check", file=sys.stderr)
    with jsonl.output(None) as lines, staging.folder(out, [base, delta], force) as fresh:
        with Files() as files, jsonl.progress("apply-delta", quiet, size, "B") as tick:
            for path, (header, group) in weights.items():
                (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                with open(fresh / path, "xb") as stream:
                    stream.write(struct.pack("<Q", len(header.encode())) + header.encode())
                    for change in group:
                        started = time.monotonic()
                        source = bits.Base(files, tensors[change.name], change.dtype)
                        digest = blake3()
                        for start, length in checkpoint.pieces(change.bytes, bits.CHUNK):
                            raw = dtypes.empty(length)
                            files.read(change.file, change.start + start, raw.data)
                            result = bits.add(source.next(length), raw, change.dtype)
                            digest.update(result.data)
                            stream.write(result.data)
                            tick(length)
                        line = {"tensor": change.name, "bytes": change.bytes, "blake3": digest.hexdigest()}
                        lines.write({**line, "ms": round((time.monotonic() - started) * 1000)})
                    stream.flush()
                    os.fsync(stream.fileno())
        for path, source_file in sorted(carried.items()):
            copy(source_file, fresh / path)
    with jsonl.output(None) as lines:
        lines.write({"tensors": len(changes), "bytes": size, "files": len(weights) + len(carried), "out": str(out)})


def _check(base: Path, delta: Path, tensors: dict[str, Tensor], changes: list[Tensor]) -> None:
    """Raise Failure unless base and delta hold the same tensors and the delta is small beside the base."""
    for change in changes:
        found = tensors.get(change.name)
        if found is None:
            raise Failure(f"{delta}: tensor {change.name} is not in the base {base}: not a delta of this base")
        if change.dtype not in dtypes.FLOATS or not bits.comparable(found, change.dtype, change.shape):
            raise Failure(f"tensor {change.name}: {found} in {base}, {change} in {delta}: not a delta of this base")
        if change.shape[:1] < found.shape[:1]:
            raise Failure(f"tensor {change.name}: {found} in {base}, {change} in {delta}: the base has more rows")
    if missing := sorted(set(tensors) - {change.name for change in changes} - {"lm_head.weight"}):
        raise Failure(f"{delta}: no tensor {missing[0]}, which the base {base} has: not a delta of this base")
    largest = max(changes, key=lambda change: change.bytes, default=None)
    if largest is not None and _looks_like_a_model(tensors[largest.name], largest):
        raise Failure(
            f"{delta}: tensor {largest.name} is as large as the base's own: this is a whole model (or a delta applied "
            "already), not a delta"
        )


def _looks_like_a_model(base: Tensor, change: Tensor) -> bool:
    """Whether the numbers of a delta are as large as the base's: those of real fine-tunes are under a tenth."""
    with Files() as files:
        ours, theirs = (dtypes.empty(min(tensor.bytes, bits.CHUNK)) for tensor in (base, change))
        files.read(base.file, base.start, ours.data)
        files.read(change.file, change.start, theirs.data)
    spread = [
        float(np.std(dtypes.convert(raw, tensor.dtype, "F32").view("<f4"), dtype=np.float64))
        for raw, tensor in ((ours, base), (theirs, change))
    ]
    return spread[1] > 0.7 * spread[0] > 0
