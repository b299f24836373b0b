"""make-delta: one pass over base and target, chunk by chunk."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson
from blake3 import blake3

from vtools import checkpoint, dtypes, jsonl, staging
from vtools.checkpoint import Files, Tensor
from vtools.delta import bits, manifest

TIED = {"lm_head.weight": "model.embed_tokens.weight"}


@dataclass
class Plan:
    """What there is to do, known from headers alone."""

    base: dict[str, Tensor]
    weights: dict[str, tuple[str, list[Tensor]]]  # target file: header, tensors
    carried: list[str]

    def base_of(self, target: Tensor) -> Tensor | None:
        """The base tensor to subtract; an output matrix that the base ties to its embedding has that as its base."""
        base = self.base.get(target.name) or self.base.get(TIED.get(target.name, ""))
        return base if base and bits.comparable(base, target.dtype, target.shape) else None


def plan(base: Path, target: Path, quiet: bool) -> Plan:
    """Read all headers of both models. Raises Failure for anything that cannot be read as one."""
    tensors = checkpoint.tensors(base)
    files, left_out = checkpoint.model_files(target)
    if left_out and not quiet:
        print(f"vtools make-delta: not part of the model, left out: {', '.join(left_out)}", file=sys.stderr)
    weights = {path: checkpoint.read_header(target / path) for path in files if path.endswith(".safetensors")}
    if not weights:
        raise checkpoint.no_weights(target)
    return Plan(tensors, weights, [path for path in files if path not in weights])


def make(base: Path, target: Path, out: Path, name: str, codec: str, force: bool, quiet: bool, dry_run: bool) -> None:
    """Write the delta folder `out`; stdout gets a line a tensor and the totals. `name` is noted as the base."""
    staging.check(out, [base, target], force)
    work = plan(base, target, quiet)
    tensors = [tensor for _, group in work.weights.values() for tensor in group]
    size = sum(tensor.bytes for tensor in tensors)
    carried = sum((target / path).stat().st_size for path in work.carried)
    # A zstd delta's size is not known before: that of real fine-tunes is a quarter of the target or more.
    free = staging.check_space(out, carried + (size + (64 << 10) * len(work.weights) if codec == "raw" else size // 4))
    whole = [tensor.name for tensor in tensors if work.base_of(tensor) is None]
    if dry_run:
        counts = {"tensors": len(tensors), "stored_whole": len(whole), "bytes": size, "carried_bytes": carried}
        with jsonl.output(None) as lines:
            names = {"base": str(base), "target": str(target), "out": str(out)}
            lines.write({"dry_run": True, **counts, **names, "free": free})
        return
    with jsonl.output(None) as lines, staging.folder(out, [base, target], force) as fresh:
        made = manifest.Manifest(name, codec, bits.CHUNK, [])
        with Files() as files, jsonl.progress("make-delta", quiet, size, "B") as tick:
            for number, path in enumerate(work.weights, 1):
                shard = f"delta-{number:05}-of-{len(work.weights):05}.safetensors"
                header, group = work.weights[path]
                with open(fresh / shard, "xb") as stream:
                    made.files.append(_shard(stream, work, files, path, shard, header, group, codec, lines, tick))
        for path in work.carried:
            copied, digest = copy(target / path, fresh / manifest.CARRIED / path)
            made.files.append(manifest.File(path, copied, digest))
        made.files.sort(key=lambda file: file.path)
        with open(fresh / manifest.NAME, "xb") as stream:
            stream.write(manifest.dump(made))
            stream.flush()
            os.fsync(stream.fileno())
        written = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
        totals = {"tensors": len(tensors), "bytes": made.bytes, "delta_bytes": written, "files": len(made.files)}
    with jsonl.output(None) as lines:
        lines.write({**totals, "stored_whole": len(whole), "out": str(out)})
    if not quiet:
        print(
            f"vtools make-delta: {len(tensors)} tensors in {len(work.weights)} files, {made.bytes:,} bytes of target, "
            f"{written:,} of delta ({written / made.bytes:.3f})" + (f", {len(whole)} stored whole" if whole else ""),
            file=sys.stderr,
        )


def _shard(
    stream: IO[bytes],
    work: Plan,
    files: Files,
    path: str,
    shard: str,
    header: str,
    group: list[Tensor],
    codec: str,
    lines: jsonl.Output,
    tick: Callable[[int], Any],
) -> manifest.File:
    """Write one delta file for one target file; its header goes in last, into room left for it, padded with spaces."""
    room = len(_header([(tensor.name, 10**17, 10**17) for tensor in group])) + 8
    stream.write(bytes(room))
    sha256 = hashlib.sha256(struct.pack("<Q", len(header.encode())) + header.encode())
    changes: list[manifest.Change] = []
    places: list[tuple[str, int, int]] = []
    end = 0
    for target in group:
        started = time.monotonic()
        width = checkpoint.WIDTHS.get(target.dtype, 1)
        source = work.base_of(target)
        base = bits.Base(files, source, target.dtype)
        digest = blake3()
        chunks: list[int] = []
        for start, length in checkpoint.pieces(target.bytes, bits.CHUNK):
            raw = dtypes.empty(length)
            files.read(target.file, target.start + start, raw.data)
            digest.update(raw.data)
            sha256.update(raw.data)
            payload = bits.encode(raw, base.next(length), width, codec)
            stream.write(payload)
            chunks.append(len(payload))
            tick(length)
        of_base = base.finish()
        noted = None
        if source and of_base:
            noted = manifest.Base(source.name, source.dtype, list(source.shape), of_base)
        places.append((target.name, end, end + sum(chunks)))
        end += sum(chunks)
        change = manifest.Change(
            target.name, target.dtype, list(target.shape), target.bytes, digest.hexdigest(), noted, chunks
        )
        changes.append(change)
        milliseconds = round((time.monotonic() - started) * 1000)
        line = {"tensor": target.name, "bytes": target.bytes, "delta_bytes": sum(chunks), "blake3": change.blake3}
        lines.write({**line, "ms": milliseconds})
    stream.seek(0)
    stream.write(struct.pack("<Q", room - 8) + _header(places).ljust(room - 8))
    stream.flush()
    os.fsync(stream.fileno())
    size = 8 + len(header.encode()) + sum(target.bytes for target in group)
    return manifest.File(path, size, sha256.hexdigest(), shard, header, changes)


def _header(places: list[tuple[str, int, int]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": manifest.FORMAT}}
    for name, start, end in places:
        entries[name] = {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
    return orjson.dumps(entries)


def copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file that does not exist yet, and its folders; its size and SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "xb") as writer:
        while data := reader.read(1 << 20):
            sha256.update(data)
            writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())
    return target.stat().st_size, sha256.hexdigest()
