"""apply-delta: one pass over base and delta, every tensor and file checked before the result gets its name."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from blake3 import blake3

from vtools import checkpoint, dtypes, jsonl, staging
from vtools.checkpoint import Files, Tensor
from vtools.delta import bits, manifest
from vtools.delta.make import copy
from vtools.process import Failure


def apply(base: Path, delta: Path, out: Path, force: bool, quiet: bool, dry_run: bool) -> None:
    """Rebuild the target of a delta as the folder `out`; stdout gets a line a tensor and one with the totals."""
    staging.check(out, [base, delta], force)
    wanted = manifest.load(delta)
    tensors = checkpoint.tensors(base)
    shards = [_check_shard(delta, wanted, file, base, tensors) for file in wanted.files]
    free = staging.check_space(out, wanted.bytes)
    if dry_run:
        with jsonl.output(None) as lines:
            counts = {"tensors": wanted.tensors, "bytes": wanted.bytes, "files": len(wanted.files)}
            names = {"made_from": wanted.base, "base": str(base), "delta": str(delta), "out": str(out)}
            lines.write({"dry_run": True, **counts, **names, "free": free})
        return
    with (
        jsonl.output(None) as lines,
        staging.folder(out, [base, delta], force) as fresh,
        Files() as files,
        jsonl.progress("apply-delta", quiet, wanted.bytes, "B") as tick,
    ):
        for file, places in zip(wanted.files, shards, strict=True):
            path = fresh / file.path
            if file.delta is None:
                source = delta / manifest.CARRIED / file.path
                digest = copy(source, path)[1]
                tick(file.bytes)
            else:
                source = delta / file.delta
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as stream:
                    digest = _rebuild(stream, wanted, file, places, tensors, files, lines, tick)
            if digest != file.sha256:
                raise Failure(
                    f"{source}: the SHA-256 of {file.path} comes out wrong: the delta is damaged; get it again"
                )
    with jsonl.output(None) as lines:
        checked = {"files": len(wanted.files), "sha256_verified": len(wanted.files)}
        lines.write({"tensors": wanted.tensors, "bytes": wanted.bytes, **checked, "out": str(out)})
    if not quiet:
        print(
            f"vtools apply-delta: {wanted.tensors} tensors, {wanted.bytes:,} bytes, "
            f"SHA-256 of all {len(wanted.files)} files as the delta says",
            file=sys.stderr,
        )


def _check_shard(
    delta: Path, wanted: manifest.Manifest, file: manifest.File, base: Path, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The places of a file's tensors in its delta file, after checking all that can be checked without reading them.

    Raises Failure where manifest, delta and base do not fit each other.
    """
    if file.delta is None or file.header is None:
        if not (delta / manifest.CARRIED / file.path).is_file():
            raise Failure(f"{delta / manifest.CARRIED / file.path}: missing from the delta")
        return {}
    where = delta / manifest.NAME
    described = [(tensor.name, str(tensor), tensor.bytes) for tensor in checkpoint.parse_header(file.header, where)]
    if described != [(change.name, f"{change.dtype} {change.shape}", change.bytes) for change in file.tensors]:
        raise Failure(f"{where}: the header of {file.path} and its list of tensors differ: the manifest is damaged")
    if not (delta / file.delta).is_file():
        raise Failure(f"{delta / file.delta}: missing from the delta")
    places = {place.name: place for place in checkpoint.read_header(delta / file.delta)[1]}
    for change in file.tensors:
        place = places.get(change.name)
        if place is None or place.bytes != sum(change.chunks) or min(change.chunks, default=0) < 0:
            raise bits.bad_delta(delta / file.delta, change.name, "not as long as the manifest says")
        if max(change.chunks, default=0) > 2 * wanted.chunk_bytes:
            raise bits.bad_delta(delta / file.delta, change.name, "a chunk is too long")
        if change.base is None:
            continue
        found = tensors.get(change.base.name)
        expected = f"{change.base.dtype} {change.base.shape}"
        if found is None or str(found) != expected:
            has = f"is {found}" if found else "is missing"
            raise Failure(
                f"{base}: tensor {change.base.name} {has}, the delta was made from {expected}: "
                "this is not the base of this delta"
            )
        if not bits.comparable(found, change.dtype, tuple(change.shape)):
            raise Failure(f"{where}: tensor {change.name}: {change.dtype} {change.shape} is no change of {expected}")
    return places


def _rebuild(
    stream: IO[bytes],
    wanted: manifest.Manifest,
    file: manifest.File,
    places: dict[str, Tensor],
    tensors: dict[str, Tensor],
    files: Files,
    lines: jsonl.Output,
    tick: Callable[[int], Any],
) -> str:
    """Write one safetensors file of the target; its SHA-256."""
    assert file.header is not None
    head = struct.pack("<Q", len(file.header.encode())) + file.header.encode()
    sha256 = hashlib.sha256(head)
    stream.write(head)
    tick(len(head))
    for change in file.tensors:
        started = time.monotonic()
        place = places[change.name]
        width = checkpoint.WIDTHS.get(change.dtype, 1)
        base = bits.Base(files, tensors[change.base.name] if change.base else None, change.dtype)
        digest = blake3()
        cuts = list(checkpoint.pieces(change.bytes, wanted.chunk_bytes))
        if len(cuts) != len(change.chunks):
            raise bits.bad_delta(place.file, change.name, "wrong number of chunks")
        start = place.start
        for (_, length), stored in zip(cuts, change.chunks, strict=True):
            payload = dtypes.empty(stored)
            files.read(place.file, start, payload.data)
            start += stored
            try:
                data = bits.decode(payload.data, base.next(length), width, wanted.codec).data
            except bits.Damaged as error:
                raise bits.bad_delta(place.file, change.name, str(error)) from None
            digest.update(data)
            sha256.update(data)
            stream.write(data)
            tick(length)
        of_base = base.finish()
        if change.base and of_base != change.base.blake3:
            raise Failure(
                f"{tensors[change.base.name].file}: tensor {change.base.name} is not the one that the delta was made "
                f"from (BLAKE3 {of_base}, expected {change.base.blake3}): another base, or a damaged one"
            )
        if digest.hexdigest() != change.blake3:
            raise bits.bad_delta(place.file, change.name, "its BLAKE3 comes out wrong")
        milliseconds = round((time.monotonic() - started) * 1000)
        lines.write({"tensor": change.name, "bytes": change.bytes, "blake3": change.blake3, "ms": milliseconds})
    stream.flush()
    os.fsync(stream.fileno())
    return sha256.hexdigest()


def verify(folder: Path, delta: Path, quiet: bool) -> None:
    """Check every file of a folder against a delta's manifest, a line a file. Raises Failure if one differs."""
    wanted = manifest.load(delta)
    wrong: list[str] = []
    with jsonl.output(None) as lines, jsonl.progress("apply-delta", quiet, wanted.bytes, "B") as tick:
        for file in wanted.files:
            sha256 = hashlib.sha256()
            path = folder / file.path
            if path.is_file():
                with open(path, "rb") as stream:
                    while data := stream.read(1 << 20):
                        sha256.update(data)
                        tick(len(data))
            good = path.is_file() and sha256.hexdigest() == file.sha256
            if not good:
                wrong.append(f"{path}: " + ("its SHA-256 is not the manifest's" if path.is_file() else "missing"))
            lines.write({"file": file.path, "bytes": file.bytes, "sha256": file.sha256, "ok": good})
        lines.write({"files": len(wanted.files), "sha256_verified": len(wanted.files) - len(wrong), "out": str(folder)})
    if wrong:
        raise Failure(wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
