"""make-delta: one pass over base and target, chunk by chunk."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from blake3 import blake3

from vtools.delta import difference, manifest, other_files
from vtools.delta.base_tensor import BaseStream, match
from vtools.files import staging
from vtools.files.atomic import sync, write
from vtools.process import Failure, say
from vtools.records import jsonl, parallel
from vtools.weights import model_files, safetensors, writing
from vtools.weights.dtypes import Bytes
from vtools.weights.tensor import WIDTHS, Files, Tensor


@dataclass
class Models:
    """Base and target, known from headers alone."""

    root: Path
    base: dict[str, Tensor]
    weights: dict[str, list[Tensor]]  # target file: its tensors, without overlaps
    carried: list[str]
    left_out: list[str]  # folders and files that are not part of the model

    def base_of(self, target: Tensor) -> Tensor | None:
        return match(self.base, target.name, target.dtype, target.shape)

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for group in self.weights.values() for tensor in group]


def read(base: Path, target: Path, quiet: bool) -> Models:
    """Read all headers of both models. Raises Failure for anything unreadable."""
    tensors = model_files.tensors(base)
    model_files.weight_files(target)  # fails if there are none
    files, left_out = model_files.model_files(target)
    if left_out and not quiet:
        say("make-delta", f"not part of the model, left out: {', '.join(left_out)}")
    root = target.parent if target.is_file() else target
    weights, carried = {}, []
    for path in files:
        file = root / path
        group = []
        if target.is_file() or model_files.holds_weights(file):
            group = list(_apart(model_files.read(file)))
        if file.stat().st_size - sum(tensor.bytes for tensor in group) > manifest.LARGEST_GAPS or not group:
            carried.append(path)  # few or no weights, such as an optimizer's state
            continue
        if any(tensor.name in (manifest.GAPS, "__metadata__") for tensor in group):
            raise Failure(f"{file}: a tensor has a name that deltas reserve; rename it")
        weights[path] = group
    return Models(root, tensors, weights, carried, left_out)


def _apart(tensors: list[Tensor]) -> Iterator[Tensor]:
    """The tensors of a file, except those that share bytes with an earlier one (tied weights, views)."""
    end = 0
    for tensor in tensors:
        if tensor.start >= end:
            yield tensor
            end = tensor.start + tensor.bytes


def make(
    base: Path, target: Path, out: Path, *, name: str, codec: str, jobs: int, force: bool, quiet: bool, dry_run: bool
) -> None:
    """Write the delta folder `out`; stdout gets one line per tensor and the totals. `name` is recorded as the base.

    Raises Failure for models that cannot be read, or that change meanwhile.
    """
    staging.check(out, [base, target], force)
    inputs = staging.fingerprint([base, target])
    models = read(base, target, quiet)
    tensors = models.tensors
    size = sum(tensor.bytes for tensor in tensors)
    carried = sum((models.root / path).stat().st_size for path in models.carried)
    # A zstd delta's size is unknown beforehand: for real fine-tunes, a fifth of the target or more.
    need = size + (64 << 10) * len(models.weights) if codec == "raw" else size // 5
    free = staging.check_space(out, carried + need)
    whole = [tensor.name for tensor in tensors if models.base_of(tensor) is None]
    if tensors and len(whole) == len(tensors):
        raise Failure(f"{base}: no tensor has the name and shape of one in {target}: not the base of that model")
    if dry_run:
        counts = {"tensors": len(tensors), "stored_whole": len(whole), "bytes": size, "carried_bytes": carried}
        with jsonl.output(None) as lines:
            others = {"carried": models.carried, "left_out": models.left_out}
            names = {"base": str(base), "target": str(target), "out": str(out)}
            lines.write({"dry_run": True, **counts, **others, **names, "free": free})
        return
    writing.reuse_memory()
    with (
        jsonl.output(None) as lines,
        staging.folder(out, [base, target], force, f"make-delta {codec} {inputs}") as work,
        Files() as files,
        Files() as places,
        ThreadPoolExecutor(jobs) as pool,
        jsonl.progress("make-delta", quiet, size, "B") as tick,
    ):
        made = manifest.Manifest(name, other_files.hashes(base), codec, difference.CHUNK, [])
        writer = _Writer(models, work, files, places, pool, jobs, made, lines, tick)
        for number, path in enumerate(models.weights, 1):
            made.files.append(writer.shard(path, f"delta-{number:05}-of-{len(models.weights):05}.safetensors"))
        for path in models.carried:
            copied, digest = staging.copy(models.root / path, work.fresh / manifest.CARRIED / path)
            made.files.append(manifest.File(path, copied, digest))
        made.files.sort(key=lambda file: file.path)
        staging.unchanged([base, target], inputs)
        write(work.fresh / manifest.NAME, manifest.dump(made))
        written = sum(path.stat().st_size for path in work.fresh.rglob("*") if path.is_file())
        totals = {"tensors": len(tensors), "bytes": made.bytes, "delta_bytes": written, "files": len(made.files)}
    with jsonl.output(None) as lines:
        left_out = {"left_out": models.left_out} if models.left_out else {}
        lines.write({**totals, "stored_whole": len(whole), "reused": writer.reused, **left_out, "out": str(out)})
    if not quiet:
        say(
            "make-delta",
            f"{len(tensors)} tensors in {len(models.weights)} files, {made.bytes:,} bytes of "
            f"target, {written:,} of delta ({written / made.bytes:.3f})"
            + (f", {len(whole)} stored whole" if whole else "")
            + (f"; copied: {', '.join(models.carried)}" if models.carried else ""),
        )


@dataclass
class _Writer:
    """Writes delta files, one per target file; a thread reads `files` while another writes `written`."""

    models: Models
    work: staging.Work
    files: Files
    written: Files
    pool: ThreadPoolExecutor
    jobs: int
    made: manifest.Manifest
    lines: jsonl.Output
    tick: Callable[[int], Any]
    reused: int = 0  # tensors that an earlier run had written

    def shard(self, path: str, name: str) -> manifest.File:
        """Write one delta file; its header is written last, into space reserved for it."""
        source, place = self.models.root / path, self.work.fresh / name
        size = source.stat().st_size
        group = self.models.weights[path]
        file = manifest.File(path, size, "", name, "", [])
        sha256, gaps = hashlib.sha256(), bytearray()

        def copy_gap(start: int, end: int) -> None:
            gap = self.files.take(source, start, end - start)
            sha256.update(gap.data)
            gaps.extend(gap.data)

        entry = '"":{"dtype":"U8","shape":[],"data_offsets":[,]},'  # and a name and three numbers of 64 bits
        reserved = 256 + sum(len(orjson.dumps(tensor.name)) + len(entry) + 3 * 20 for tensor in group)
        reserved += -reserved % 8
        stored, position, end = [], reserved, 0
        place.touch()
        for tensor in group:
            copy_gap(end, tensor.start)
            end = tensor.start + tensor.bytes
            started = time.monotonic()
            change = self._kept(tensor, path, place, position, sha256)
            if change is None:
                change = self._change(tensor, path, place, position, sha256)
            file.tensors.append(change)
            length = sum(change.chunks)
            stored.append((change.name, "U8", [length], length))
            position += length
            self.report(change, round((time.monotonic() - started) * 1000))
        copy_gap(end, size)
        packed = difference.pack(gaps)
        self.written.write(place, position, memoryview(packed))
        stored.append((manifest.GAPS, "U8", [len(packed)], len(packed)))
        os.truncate(place, position + len(packed))  # an earlier run may have written more
        self.written.write(place, 0, memoryview(safetensors.header(stored, {"format": manifest.FORMAT}, reserved)))
        sync(place)
        file.sha256, file.gaps_blake3 = sha256.hexdigest(), blake3(gaps).hexdigest()
        return file

    def _kept(self, target: Tensor, path: str, place: Path, position: int, sha256: Any) -> manifest.Change | None:
        """What an earlier run wrote for a tensor, if it is correct; the target's bytes are hashed again."""
        noted = self.work.done.get(f"{path}:{target.name}")
        if noted is None:
            return None
        change = manifest.Change.parse(noted["change"])
        length = sum(change.chunks)
        if place.stat().st_size < position + length:
            return None
        digest = blake3()
        for raw in self.files.chunks(place, position, length):
            digest.update(raw.data)
        if digest.hexdigest() != noted["stored"]:
            return None
        for raw in self.files.chunks_of(target):
            sha256.update(raw.data)
            self.tick(len(raw))
        self.reused += 1
        return change

    def _change(self, target: Tensor, path: str, place: Path, position: int, sha256: Any) -> manifest.Change:
        """Write the chunks of one tensor: read and hashed in order, packed in threads, written in order."""
        source = self.models.base_of(target)
        base = BaseStream(self.files, source, target.dtype, hashed=True)
        digest, stored = blake3(), blake3()
        chunks: list[int] = []
        width = WIDTHS.get(target.dtype, 1)

        def read() -> Iterator[tuple[Bytes, Bytes]]:
            for raw in self.files.chunks_of(target, self.made.chunk_bytes):
                digest.update(raw.data)
                sha256.update(raw.data)
                yield raw, base.next(len(raw))

        def pack(pair: tuple[Bytes, Bytes]) -> bytes:
            return difference.encode(*pair, width, self.made.codec)

        for (raw, _), payload in parallel.in_threads(pack, read(), self.jobs, self.jobs, self.pool):
            self.written.write(place, position + sum(chunks), memoryview(payload))
            stored.update(payload)
            chunks.append(len(payload))
            self.tick(len(raw))
        hashed, noted = base.finish(), None
        if source and hashed:
            noted = manifest.Base(source.name, source.dtype, list(source.shape), hashed)
        change = manifest.Change(
            target.name, target.dtype, list(target.shape), target.start, target.bytes, digest.hexdigest(), noted, chunks
        )
        self.work.finish(f"{path}:{target.name}", change=asdict(change), stored=stored.hexdigest())
        return change

    def report(self, change: manifest.Change, milliseconds: int) -> None:
        """Write the line of a tensor to stdout."""
        sizes = {"bytes": change.bytes, "delta_bytes": sum(change.chunks)}
        self.lines.write({"tensor": change.name, **sizes, "blake3": change.blake3, "ms": milliseconds})
