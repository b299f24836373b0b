# ruff: noqa: TID253  imported lazily by the command
"""apply-delta for deltas without delta.json, as FastChat and Alpaca published them: result = base + delta, rounded.

The layout follows the delta's files; .bin files become safetensors ones. Nothing says which base is the right one, so
what can be told from the numbers is checked: see `_check_numbers`.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vtools import checkpoint, dtypes, jsonl, staging
from vtools.checkpoint import WIDTHS, Files, Tensor
from vtools.delta import base as of_base
from vtools.delta import bits, build, carry
from vtools.delta.base import Base
from vtools.dtypes import FLOATS, Bytes
from vtools.process import Failure

SUM_TOLERANCE = 0.01  # that of Alpaca's own check
SAMPLE = 1 << 20  # elements looked at in a tensor


def add(
    base: Path, delta: Path, out: Path, *, dtype: str | None, extra_rows: str | None, expect_sum: float | None,
    template: str | None, jobs: int, force: bool, quiet: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Write base + delta as the folder `out`; stdout gets a line a tensor and one with the totals. Raises Failure.

    `dtype` (F16, BF16, F32) is that of the sum, else each tensor's own in the delta.
    """
    staging.check(out, [base, delta], force)
    root = delta.parent if delta.is_file() else delta
    paths, _ = checkpoint.model_files(delta)
    sources = checkpoint.weight_files(delta)
    tensors = checkpoint.tensors(base)
    files = {
        file: [tensor for tensor in checkpoint.read(file) if not of_base.is_buffer(tensor.name)] for file in sources
    }
    changes = {change.name: change for group in files.values() for change in group}
    _check_names(base, delta, tensors, changes, extra_rows)
    rows = next((change.shape[0] for name, change in changes.items() if name.endswith("embed_tokens.weight")), None)
    if rows is not None:
        carry.check_vocabulary(root, rows)
    _check_numbers(delta, tensors, changes)
    if template is not None:
        carry.load_template(root, template)

    names = _names(sources)
    parts: list[build.Part] = []
    heads: dict[str, bytes] = {}
    for file, group in files.items():
        sizes = [
            (change.name, kind, change.shape, change.bytes // WIDTHS[change.dtype] * WIDTHS[kind])
            for change in group
            for kind in [dtype or change.dtype]
        ]
        head = heads[names[file]] = checkpoint.header(sizes, {"format": "pt"})
        start = len(head)
        for change, (_, kind, _, length) in zip(group, sizes, strict=True):
            source = tensors.get(change.name) or tensors[of_base.TIED[change.name]]
            parts.append(_part(change, source, kind, names[file], start, length, extra_rows))
            if expect_sum is not None:
                parts[-1].measure = functools.partial(_sum, kind)
            start += length
    carried = {path: root / path for path in paths if root / path not in files and not _describes_weights(path)}
    for name in ("config.json", "generation_config.json"):  # FastChat takes the base's; a delta's own knows more
        if name not in carried and base.is_dir() and (base / name).is_file():
            carried[name] = base / name
    size = sum(map(len, heads.values())) + sum(part.bytes for part in parts)
    total = size + sum(source.stat().st_size for source in carried.values())
    free = staging.check_space(out, total)
    if dry_run:
        with jsonl.output(None) as lines:
            named = {"base": str(base), "delta": str(delta), "out": str(out)}
            lines.write({"dry_run": True, "tensors": len(parts), "bytes": total, **named, "free": free})
        return
    build.reuse_memory()
    making = f"add {dtype} {extra_rows} {template} {staging.fingerprint([base, delta])}"
    with (
        jsonl.output(None) as lines,
        staging.folder(out, [base, delta], force, making) as work,
        jsonl.progress("apply-delta", quiet, size, "B") as tick,
    ):
        for path, head in heads.items():
            build.allocate(work.fresh / path, len(head) + sum(part.bytes for part in parts if part.path == path))
            with open(work.fresh / path, "r+b") as stream:
                stream.write(head)
                tick(len(head))
        written = build.write(parts, work, jobs, lines, tick)
        if expect_sum is not None:
            _check_sum(written.measured, expect_sum, [*tensors.values(), *_buffers(sources)])
        for path, source_file in sorted(carried.items()):
            carry.copy(source_file, work.fresh / path)
        if len(heads) > 1:
            _write_index(work.fresh / "model.safetensors.index.json", parts)
        carry.fit_config(work.fresh, rows, dtype)
        if template is not None:
            carry.load_template(work.fresh, template).save(work.fresh)
        totals: dict[str, Any] = {
            "tensors": len(parts),
            "bytes": total,
            "files": len(heads) + len(carried),
            "reused": written.reused,
        }
        if expect_sum is not None:
            totals["sum"] = round(written.measured, 4)
    with jsonl.output(None) as lines:
        lines.write({**totals, "verified": False, "out": str(out)})
    if not quiet:
        print(
            f"vtools apply-delta: {len(parts)} tensors added, {total:,} bytes; {delta} has no delta.json, so neither "
            "base nor result could be checked",
            file=sys.stderr,
        )
        if template is None and not any(out.glob("chat_template*")):
            print(
                f"vtools apply-delta: {out}: no chat template of its own; --template NAME stores one (vicuna-v1.1 for "
                "Vicuna 1.1 to 1.5, vicuna-v0 for the first, alpaca for Alpaca)",
                file=sys.stderr,
            )


def _names(sources: list[Path]) -> dict[Path, str]:
    """The result's file for each of the delta's: safetensors, numbered as the delta's are."""
    return {
        file: re.sub(r"^pytorch_model", "model", file.stem) + ".safetensors"
        if file.suffix in checkpoint.PICKLED
        else file.name
        for file in sources
    }


def _describes_weights(path: str) -> bool:
    """Whether a file of the delta is an index of its weights' files, or weights in a form that is not read here."""
    return path.endswith(".index.json") or checkpoint.looks_like_weights(path)


def _check_names(
    base: Path, delta: Path, tensors: dict[str, Tensor], changes: dict[str, Tensor], extra_rows: str | None
) -> None:
    """Raise Failure unless base and delta hold the same tensors, in shapes that can be added."""
    for change in changes.values():
        found = tensors.get(change.name) or tensors.get(of_base.TIED.get(change.name, ""))
        if found is None:
            raise Failure(f"{delta}: tensor {change.name} is not in the base {base}: not a delta of this base")
        if change.dtype not in FLOATS or not of_base.comparable(found, change.dtype, change.shape):
            raise Failure(f"tensor {change.name}: {found} in {base}, {change} in {delta}: not a delta of this base")
        if change.shape[:1] < found.shape[:1]:
            raise Failure(f"tensor {change.name}: {found} in {base}, {change} in {delta}: the base has more rows")
        if change.shape[:1] > found.shape[:1] and extra_rows is None:
            raise Failure(
                f"tensor {change.name}: {found} in {base}, {change} in {delta}: the delta adds rows, and does not say "
                "to what: --extra-rows zero (Vicuna v0) or --extra-rows mean (Alpaca)"
            )
    tied = {one for pair in of_base.TIED.items() for one in pair if changes.keys() & pair}
    if missing := sorted(name for name in tensors.keys() - changes.keys() - tied if not of_base.is_buffer(name)):
        raise Failure(f"{delta}: no tensor {missing[0]}, which the base {base} has: not a delta of this base")


def _check_numbers(delta: Path, tensors: dict[str, Tensor], changes: dict[str, Tensor]) -> None:
    """Raise Failure for a delta that is a whole model, or that the base holds already.

    Those of real fine-tunes are under a tenth of the base. And a base B + D, regressed on the delta D, has the slope
    1 in every matrix, where that of B is near 0.
    """
    largest = sorted(changes.values(), key=lambda change: (-change.bytes, change.name))[:16]
    ratios, slopes = [], []
    with Files() as files:
        for change in largest:
            source = tensors.get(change.name) or tensors[of_base.TIED[change.name]]
            length = min(SAMPLE, change.bytes // WIDTHS[change.dtype], source.bytes // WIDTHS[source.dtype])
            ours, theirs = (_sample(files, tensor, length) for tensor in (source, change))
            if not length or not (spread := float(theirs.std())):
                continue
            ratios.append(float(ours.std()) / spread)
            if ratios[-1] / length**0.5 < 0.05:  # the standard error of the slope
                slopes.append(float(((ours - ours.mean()) * (theirs - theirs.mean())).mean()) / spread**2)
    if ratios and min(ratios[:1]) < 1.4:
        raise Failure(
            f"{delta}: tensor {largest[0].name} is as large as the base's own: this is a whole model, not a delta"
        )
    if len(slopes) >= 4 and all(0.75 < slope < 1.25 for slope in slopes):
        raise Failure(
            f"{delta}: the base holds this delta already (slope {slopes[0]:.2f}): it was applied to it before"
        )


def _sample(files: Files, tensor: Tensor, length: int) -> np.ndarray:
    raw = dtypes.empty(length * WIDTHS[tensor.dtype])
    files.read(tensor.file, tensor.start, raw.data)
    return dtypes.convert(raw, tensor.dtype, "F64").view("<f8")


def _part(
    change: Tensor, source: Tensor, kind: str, path: str, start: int, length: int, extra_rows: str | None
) -> build.Part:
    """How one tensor of the sum is written."""

    def chunks(files: Files) -> Iterator[Bytes]:
        grows = change.shape[:1] > source.shape[:1]
        extra = of_base.mean_row(files, source, kind) if grows and extra_rows == "mean" else None
        base = Base(files, source, kind, extra)
        width, wide = WIDTHS[change.dtype], WIDTHS[kind]
        for begin, size in checkpoint.pieces(change.bytes, bits.CHUNKS["raw"]):
            raw = dtypes.empty(size)
            files.read(change.file, change.start + begin, raw.data)
            yield bits.add(base.next(size // width * wide), dtypes.convert(raw, change.dtype, kind), kind)

    return build.Part(change.name, path, start, length, chunks)


def _sum(kind: str, data: Bytes) -> float:
    return float(dtypes.convert(data, kind, "F64").view("<f8").sum())


def _buffers(sources: list[Path]) -> list[Tensor]:
    return [tensor for file in sources for tensor in checkpoint.read(file)]


def _check_sum(found: float, expected: float, tensors: list[Tensor]) -> None:
    """Raise Failure unless the sum of all weights is the expected one, with or without the buffers of base and delta.

    Alpaca's published 50637.1836 comes from a time when transformers counted those buffers in.
    """
    with Files() as files:
        buffers = sum(
            float(_sample(files, tensor, tensor.bytes // WIDTHS[tensor.dtype]).sum())
            for tensor in tensors
            if of_base.is_buffer(tensor.name) and tensor.dtype in FLOATS
        )
    if min(abs(found - expected), abs(found + buffers - expected)) > SUM_TOLERANCE:
        raise Failure(
            f"the sum of all weights is {found:.4f}, not {expected}: the base or the delta is not the one meant"
        )


def _write_index(path: Path, parts: list[build.Part]) -> None:
    weight_map = {part.name: part.path for part in parts}
    index = {"metadata": {"total_size": sum(part.bytes for part in parts)}, "weight_map": weight_map}
    with jsonl.atomic(path) as stream:
        stream.write((json.dumps(index, indent=2) + "\n").encode())
