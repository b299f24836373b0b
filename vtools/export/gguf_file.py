# ruff: noqa: TID253  imported lazily by the command
"""The GGUF file: a header of metadata and tensor descriptions, then the tensors, written front to back.

Format: GGUF version 3, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import errno
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np

from vtools.export import architecture, blocks, k_quants, tensor_names, vocabulary
from vtools.export.tensor_names import GgufTensor
from vtools.files import staging
from vtools.files.atomic import atomic
from vtools.models.reference import HUB_FILES, HUB_PICKLED
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure, UsageFailure, say
from vtools.records import jsonl, parallel
from vtools.weights import model_files, tied_head
from vtools.weights.dtypes import Bytes
from vtools.weights.tensor import Files

ALIGNMENT = 32
FILE_TYPES = {
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0",
    "q4_1": "MOSTLY_Q4_1", "q5_0": "MOSTLY_Q5_0", "q5_1": "MOSTLY_Q5_1", "q4_k_m": "MOSTLY_Q4_K_M",
    "q5_k_m": "MOSTLY_Q5_K_M", "q6_k": "MOSTLY_Q6_K",
}  # fmt: skip


@dataclass
class Layout:
    """The contents of the file, known from headers and the tokenizer alone."""

    header: bytes
    entries: list[GgufTensor]

    @property
    def bytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + sum(_aligned(entry.bytes) for entry in self.entries)


def write(
    folder: Path, name: str, out: Path, *, kind: str, template: str | None, jobs: int, force: bool, quiet: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Write the model in `folder` as the GGUF file `out`; stdout gets one line per tensor and one with the totals."""
    _check(out, folder, force)
    inputs = [path for pattern in HUB_FILES + HUB_PICKLED for path in folder.glob(pattern)]
    before = staging.fingerprint(inputs)
    quantizer = k_quants.program() if kind in tensor_names.MIXES else None
    layout = laid_out(folder, name, "f16" if quantizer and not dry_run else kind, template, quiet)
    free = staging.check_space(out, layout.bytes * 2 if quantizer else layout.bytes)
    with jsonl.output(None) as lines:
        if dry_run:
            for entry in layout.entries:
                lines.write(_line(entry.name, entry.type, entry.shape, entry.bytes))
            totals = _totals(len(layout.entries), layout.bytes, kind, out)
            lines.write({"dry_run": True, **totals, "free": free})
            return
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic(out) as stream:
                if quantizer:
                    totals = _write_with(quantizer, stream, layout, out, kind, jobs, quiet, lines)
                else:
                    for line in _write_tensors(stream, layout, jobs, quiet):
                        lines.write(line)
                    totals = _totals(len(layout.entries), layout.bytes, kind, out)
                staging.unchanged(inputs, before)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Failure(f"{out}: the disk is full; nothing was kept") from None
            raise
        lines.write(totals)
    if not quiet:
        size, count = totals["bytes"], totals["tensors"]
        large = 0 if quantizer or kind == "f16" else sum(entry.type == "f16" for entry in layout.entries)
        kept = f"; {large} matrices stay f16, their rows are no multiple of 32" if large else ""
        say("export", f"{out}: {count} tensors, {size:,} bytes, {kind}{kept}")


def _check(out: Path, folder: Path, force: bool) -> None:
    """Refuse an output that is not a file, that exists, or that belongs to the model (unless it is a GGUF file)."""
    if str(out) == "-":
        raise UsageFailure("-o -: a GGUF file cannot go to a pipe; name a file")
    if out.is_dir():
        raise UsageFailure(f"{out}: is a folder; give -o the name of a file")
    if not out.exists():
        return
    if out.suffix != ".gguf" and any(path.exists() and path.samefile(out) for path in folder.rglob("*")):
        raise UsageFailure(f"{out}: is part of the model; choose another output file")
    if not force:
        raise Failure(f"{out}: exists; --force replaces it")


def laid_out(folder: Path, name: str, kind: str, template: str | None, quiet: bool) -> Layout:
    """Read the configuration, the tokenizer and all headers. Raises Failure for a model that cannot be exported."""
    found = architecture.read(folder)
    stored = model_files.tensors(folder)
    found = replace(found, tied=found.tied and not tied_head.apart(stored))
    entries = tensor_names.plan(folder, stored, found, kind)
    if found.window and not quiet:
        say(
            "export",
            f"{folder}: attention sees {found.window} tokens back, llama.cpp's {found.name} sees all: "
            "longer texts give different results there",
        )
    parameters = sum(math.prod(entry.shape) for entry in entries if entry.source)
    metadata = {
        "general.architecture": found.name,
        "general.type": "model",
        "general.name": name,
        "general.size_label": gguf.size_label(parameters, parameters, 0, 0),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.file_type": int(gguf.LlamaFileType[FILE_TYPES[kind]]),
        **found.metadata(),
        **vocabulary.metadata(load_tokenizer(str(folder)), found.vocabulary, template, quiet),
    }
    return Layout(_header(metadata, entries), entries)


def _write_tensors(stream: IO[bytes], layout: Layout, jobs: int, quiet: bool) -> Iterator[dict[str, Any]]:
    """Write the whole file to `stream`; yields each tensor's line once it is written."""
    size = sum(entry.source.bytes for entry in layout.entries if entry.source)
    stream.write(layout.header)
    started = time.monotonic()
    with Files() as files, jsonl.progress("export", quiet, size, "B") as tick:
        for (entry, raw, last), encoded in parallel.in_threads(_encode, _blocks(layout.entries, files), jobs, jobs + 1):
            stream.write(encoded.data)
            tick(len(raw))
            if last:
                stream.write(bytes(_aligned(entry.bytes) - entry.bytes))
                milliseconds = round((time.monotonic() - started) * 1000)
                started = time.monotonic()
                yield {**_line(entry.name, entry.type, entry.shape, entry.bytes), "ms": milliseconds}


def _blocks(entries: list[GgufTensor], files: Files) -> Iterator[tuple[GgufTensor, Bytes, bool]]:
    """Blocks of every tensor's rows as stored, each with whether it is the tensor's last."""
    for entry in entries:
        source = entry.source
        if source is None:
            yield entry, np.array(entry.values, "<f4").view(np.uint8), True
            continue
        row = source.bytes // source.shape[0]
        step = blocks.rows_at_once(row, entry.head) * row
        left = source.bytes
        for raw in files.chunks_of(source, step):
            left -= len(raw)
            yield entry, raw, not left


def _encode(block: tuple[GgufTensor, Bytes, bool]) -> Bytes:
    entry, raw, _ = block
    if entry.source is None:
        return raw
    if entry.head:
        raw = blocks.interleave(raw, entry.source.bytes // entry.shape[0], entry.head)
    try:
        return blocks.encode(raw, entry.source.dtype, entry.shape[-1], entry.type)
    except ValueError as error:
        raise Failure(f"{entry.source.file}: tensor {entry.source.name}: {error}") from None


def _write_with(
    program: str, stream: IO[bytes], layout: Layout, out: Path, kind: str, jobs: int, quiet: bool, lines: jsonl.Output
) -> dict[str, Any]:
    """Write F16 beside `out` and have llama-quantize convert it to the file `stream`; returns the totals."""
    part = Path(os.readlink(f"/proc/self/fd/{stream.fileno()}"))  # the program needs a file name
    whole = out.resolve().with_name(f".{out.name}.f16")
    try:
        with open(whole, "wb") as beside:
            for _ in _write_tensors(beside, layout, jobs, quiet):
                pass
        k_quants.run(program, whole, part, kind, jobs)
    finally:
        whole.unlink(missing_ok=True)
    reader = gguf.GGUFReader(part)
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        lines.write(_line(tensor.name, tensor.tensor_type.name.lower(), shape, int(tensor.n_bytes)))
    return _totals(len(reader.tensors), part.stat().st_size, kind, out) | {"with": program}


def _line(name: str, kind: str, shape: tuple[int, ...], size: int) -> dict[str, Any]:
    return {"tensor": name, "type": kind, "shape": list(shape), "bytes": size}


def _totals(count: int, size: int, kind: str, out: Path) -> dict[str, Any]:
    return {"tensors": count, "bytes": size, "type": kind, "out": str(out)}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _header(metadata: dict[str, Any], entries: list[GgufTensor]) -> bytes:
    """Everything before the first tensor, including its alignment."""
    with tempfile.TemporaryDirectory() as folder:  # gguf can only write to a file of its own
        writer = gguf.GGUFWriter(Path(folder, "header"), metadata["general.architecture"])
        for key, value in metadata.items():
            if key != "general.architecture":  # the writer adds it first itself
                kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
                writer.add_key_value(key, value, kind)
        for entry in entries:
            stored = tensor_names.ggml_type(entry.type)
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.bytes, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = Path(folder, "header").read_bytes()
    return header.ljust(_aligned(len(header)), b"\0")
