# ruff: noqa: TID253  imported lazily by the command
"""apply-delta for deltas without delta.json, as FastChat and Alpaca published them: result = base + delta, rounded.

The result has the same files as the delta; .bin files become safetensors. Nothing identifies the right base, so what
the numbers can reveal is checked: see `_check_numbers`.
"""

import functools
import itertools
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtools.delta import manifest, other_files
from vtools.delta.base_tensor import TIED, BaseStream, comparable, mean_row
from vtools.files import staging
from vtools.models.configs import fit_config, read_json
from vtools.models.tokenizer import chat_template
from vtools.process import Failure, UsageFailure, say
from vtools.records import jsonl
from vtools.weights import dtypes, model_files, writing
from vtools.weights.dtypes import FLOATS, Bytes
from vtools.weights.model_files import is_buffer
from vtools.weights.tensor import WIDTHS, Files, Tensor, dtype_name

SUM_TOLERANCE = 0.01  # as in Alpaca's own check
SAMPLE = 1 << 20  # elements examined per tensor


@dataclass
class Result:
    """What the result will contain, known from headers and a sample of the numbers."""

    files: dict[str, list[writing.NewTensor]]  # files of weights and their tensors
    carried: dict[str, Path]
    rows: int | None  # rows of the embedding
    dtype: str | None  # the dtype of all tensors, if they share one
    buffers: list[Tensor]


def apply(
    base: Path, delta: Path, out: Path, *, dtype: str | None, extra_rows: str | None, expect_sum: float | None,
    template: str | None, jobs: int, force: bool, quiet: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Write base + delta as the folder `out`; stdout gets one line per tensor and one with the totals. Raises Failure.

    Tensors are added in `dtype`, or each in its own dtype in the delta.
    """
    if template is not None and delta.is_file():
        raise UsageFailure("--template needs the delta's tokenizer: give the folder of the delta, not one file")
    staging.check(out, [base, delta], force)
    inputs = staging.fingerprint([base, delta])
    result = foreseen(base, delta, dtype, extra_rows)
    if template is not None:
        other_files.template_for(_root(delta), template)
    entries = [entry for group in result.files.values() for entry in group]
    weights = sum(entry.bytes for entry in entries)
    total = weights + sum(len(writing.header(group)) for group in result.files.values())
    total += sum(source.stat().st_size for source in result.carried.values())
    free = staging.check_space(out, total)
    totals: dict[str, Any] = {"tensors": len(entries), "bytes": total}
    if dry_run:
        with jsonl.output(None) as lines:
            named = {"base": str(base), "delta": str(delta), "out": str(out)}
            lines.write({"dry_run": True, **totals, **named, "free": free})
        return
    writing.reuse_memory()
    making = f"add {dtype} {extra_rows} {template} {inputs}"
    with (
        jsonl.output(None) as lines,
        staging.folder(out, [base, delta], force, making) as work,
        jsonl.progress("apply-delta", quiet, weights, "B") as tick,
    ):
        parts = writing.begin(result.files, work)
        if expect_sum is not None:
            for part, entry in zip(parts, entries, strict=True):
                part.measure = functools.partial(_total, entry.dtype)
        written = writing.write(parts, work, jobs, lines, tick)
        if expect_sum is not None:
            _check_sum(written.measured, expect_sum, result.buffers)
            totals["sum"] = round(written.measured, 4)
        for path, source in sorted(result.carried.items()):
            staging.copy(source, work.fresh / path)
        fit_config(work.fresh, dtype_name(result.dtype) if result.dtype else None, result.rows)
        if template is not None:
            other_files.template_for(work.fresh, template).save(work.fresh)
        staging.unchanged([base, delta], inputs)
    totals |= {"files": len(result.files) + len(result.carried), "reused": written.reused, "verified": False}
    with jsonl.output(None) as lines:
        lines.write({**totals, "out": str(out)})
    if not quiet:
        say(
            "apply-delta",
            f"{len(entries)} tensors added, {total:,} bytes; {delta} has no delta.json, so "
            "neither base nor result could be checked",
        )
        own = chat_template(out, read_json(out / "tokenizer_config.json"))
        if template is None and delta.is_dir() and not own:
            say(
                "apply-delta",
                f"{out}: no chat template of its own; --template NAME stores one (vicuna-v1.1 for "
                "Vicuna 1.1 to 1.5, vicuna-v0 for the first, alpaca for Alpaca)",
            )


def foreseen(base: Path, delta: Path, dtype: str | None, extra_rows: str | None) -> Result:
    """Read all headers, and samples of the largest tensors. Raises Failure for anything that is not a delta."""
    sources = model_files.weight_files(delta)
    stored = {file: model_files.read(file) for file in sources}
    if any(tensor.name == manifest.GAPS for group in stored.values() for tensor in group):
        raise Failure(f"{delta}: made by make-delta, but {manifest.NAME} is missing; give the delta's whole folder")
    tensors = model_files.tensors(base)
    changes: dict[str, Tensor] = {}
    for tensor in itertools.chain(*stored.values()):
        if not is_buffer(tensor.name):
            changes[tensor.name] = tensor
    _check_names(base, delta, tensors, changes, extra_rows)
    _check_missing(base, delta, tensors, changes)
    _check_numbers(delta, tensors, changes)
    rows = next((change.shape[0] for name, change in changes.items() if name.endswith("embed_tokens.weight")), None)
    if rows is not None:
        other_files.check_vocabulary(_root(delta), rows)
    files: dict[str, list[writing.NewTensor]] = {}
    for file, group in stored.items():
        path = _name(delta, file) if len(stored) > 1 else "model.safetensors"
        if path in files:
            raise Failure(f"{file}: another file of the delta becomes {path} too; rename one")
        files[path] = [
            _sum_of(_source(tensors, change), change, dtype or change.dtype, extra_rows)
            for change in group
            if changes.get(change.name) is change
        ]
    kinds = {entry.dtype for group in files.values() for entry in group}
    paths, _ = model_files.model_files(delta)
    root = _root(delta)
    carried = {path: root / path for path in paths if root / path not in stored and not model_files.about_weights(path)}
    for name in ("config.json", "generation_config.json"):  # FastChat takes the base's; the delta's is more accurate
        if name not in carried and base.is_dir() and (base / name).is_file():
            carried[name] = base / name
    every = itertools.chain(tensors.values(), *stored.values())
    buffers = [tensor for tensor in every if is_buffer(tensor.name) and tensor.dtype in FLOATS]
    return Result(files, carried, rows, kinds.pop() if len(kinds) == 1 else None, buffers)


def _root(delta: Path) -> Path:
    return delta.parent if delta.is_file() else delta


def _source(tensors: dict[str, Tensor], change: Tensor) -> Tensor:
    return tensors.get(change.name) or tensors[TIED[change.name]]


def _name(delta: Path, file: Path) -> str:
    """The result's file for one of the delta's: safetensors, with the same number and path."""
    return str(file.relative_to(delta).with_name(re.sub(r"^pytorch_model", "model", file.stem) + ".safetensors"))


def _check_names(
    base: Path, delta: Path, tensors: dict[str, Tensor], changes: dict[str, Tensor], extra_rows: str | None
) -> None:
    """Raise Failure unless base and delta have the same tensors, in shapes that can be added."""
    for change in changes.values():
        found = tensors.get(change.name) or tensors.get(TIED.get(change.name, ""))
        if found is None:
            raise Failure(f"{delta}: tensor {change.name} is not in the base {base}: not a delta of this base")
        if change.dtype not in FLOATS or not comparable(found, change.dtype, change.shape):
            raise Failure(f"tensor {change.name}: {found} in {base}, {change} in {delta}: not a delta of this base")
        if change.shape[:1] < found.shape[:1]:
            raise Failure(f"tensor {change.name}: {found} in {base}, {change} in {delta}: the base has more rows")
        if change.shape[:1] > found.shape[:1] and extra_rows is None:
            raise Failure(
                f"tensor {change.name}: {found} in {base}, {change} in {delta}: the delta adds rows; give what "
                "they are added to: --extra-rows zero (Vicuna v0) or --extra-rows mean (Alpaca)"
            )


def _check_missing(base: Path, delta: Path, tensors: dict[str, Tensor], changes: dict[str, Tensor]) -> None:
    """Raise Failure if the base has weights that the delta lacks, except an output matrix that the result ties."""
    missing = {name for name in tensors.keys() - changes.keys() if not is_buffer(name)}
    place = next((place for place in (_root(delta), base) if (place / "config.json").is_file()), None)
    if place and read_json(place / "config.json").get("tie_word_embeddings"):
        missing -= TIED.keys()
    if missing:
        raise Failure(f"{delta}: no tensor {min(missing)}, which the base {base} has: not a delta of this base")


def _check_numbers(delta: Path, tensors: dict[str, Tensor], changes: dict[str, Tensor]) -> None:
    """Raise Failure for a delta that is a whole model, or that the base already contains.

    The changes of real fine-tunes are a tenth of the weights or less. A base that is B + D already, regressed on the
    delta D, has slope 1 in every matrix; the right base B has a slope near 0.
    """
    largest = sorted(changes.values(), key=lambda change: (-change.bytes, change.name))[:16]
    ratios, slopes = [], []
    with Files() as files:
        for change in largest:
            source = _source(tensors, change)
            length = min(change.bytes // WIDTHS[change.dtype], source.bytes // WIDTHS[source.dtype])
            ours, theirs = (_sample(files, tensor, length) for tensor in (source, change))
            real = np.isfinite(ours) & np.isfinite(theirs)
            ours, theirs = ours[real], theirs[real]
            spread = float(theirs.std()) if len(theirs) else 0.0
            if spread:
                ratios.append(float(ours.std()) / spread)
                if ratios[-1] / len(ours) ** 0.5 < 0.05:  # the standard error of the slope
                    slopes.append(float(((ours - ours.mean()) * (theirs - theirs.mean())).mean()) / spread**2)
    if ratios and statistics.median(ratios) < 2:
        raise Failure(f"{delta}: its tensors are as large as the base's own: this is a whole model, not a delta")
    if len(slopes) >= 4 and all(0.75 < slope < 1.25 for slope in slopes):
        raise Failure(f"{delta}: the base contains this delta already (slope {slopes[0]:.2f}): it was applied before")


def _sample(files: Files, tensor: Tensor, length: int) -> np.ndarray:
    """At most SAMPLE of the first `length` elements, in stretches spread over all of them, as float64."""
    width = WIDTHS[tensor.dtype]
    stretches = 1 if length <= SAMPLE else 16
    stretch = min(length, SAMPLE) // stretches
    raw = dtypes.empty(stretches * stretch * width)
    for number in range(stretches):
        start = (length - stretch) * number // max(stretches - 1, 1)
        view = raw.data[number * stretch * width : (number + 1) * stretch * width]
        files.read(tensor.file, tensor.start + start * width, view)
    return dtypes.convert(raw, tensor.dtype, "F64").view("<f8")


def _sum_of(source: Tensor, change: Tensor, kind: str, extra_rows: str | None) -> writing.NewTensor:
    """The tensor source + change, computed and written in the dtype `kind`."""

    def chunks(files: Files) -> Iterator[Bytes]:
        grows = change.shape[:1] > source.shape[:1]
        base = BaseStream(
            files, source, kind, mean_row(files, source, kind) if grows and extra_rows == "mean" else None
        )
        width, wide = WIDTHS[change.dtype], WIDTHS[kind]
        for raw in files.chunks_of(change):
            yield add(base.next(len(raw) // width * wide), dtypes.convert(raw, change.dtype, kind), kind)

    size = change.bytes // WIDTHS[change.dtype] * WIDTHS[kind]
    return writing.NewTensor(change.name, kind, change.shape, size, chunks)


def add(base: Bytes, change: Bytes, dtype: str) -> Bytes:
    """base + change, all in `dtype`, with the same bits as torch's addition on a CPU (except NaNs)."""
    exact = "F64" if dtype == "F64" else "F32"  # torch computes half precision in single precision
    with np.errstate(all="ignore"):
        total = dtypes.convert(base, dtype, exact).view(FLOATS[exact])
        total = total + dtypes.convert(change, dtype, exact).view(FLOATS[exact])
    return dtypes.convert(total.view(np.uint8), exact, dtype)


def _total(kind: str, data: Bytes) -> float:
    return float(dtypes.convert(data, kind, "F64").view("<f8").sum())


def _check_sum(found: float, expected: float, buffers: list[Tensor]) -> None:
    """Raise Failure unless the sum of all weights is as expected, with or without the buffers of base and delta.

    Alpaca's published 50637.1836 dates from when transformers included those buffers.
    """
    more = 0.0
    with Files() as files:
        for tensor in buffers:
            for raw in files.chunks_of(tensor):
                more += _total(tensor.dtype, raw)
    if not min(abs(found - expected), abs(found + more - expected)) <= SUM_TOLERANCE:  # written so that NaN fails
        raise Failure(f"the sum of all weights is {found:.4f}, not {expected}: wrong base or delta")
