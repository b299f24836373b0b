"""apply-delta: one pass over base and delta; every tensor is checked before the result gets its name."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from vtools.delta import difference, manifest, other_files
from vtools.delta.base_tensor import BaseStream, comparable
from vtools.files import staging
from vtools.process import Failure, say
from vtools.records import jsonl
from vtools.weights import model_files, writing
from vtools.weights.dtypes import Bytes
from vtools.weights.tensor import STEP, WIDTHS, Files, Tensor, described


def apply(
    base: Path, delta: Path, out: Path, *, template: str | None, jobs: int, force: bool, quiet: bool, dry_run: bool
) -> None:
    """Rebuild the target of a delta as the folder `out`; stdout gets one line per tensor and one with the totals.

    Raises Failure if the base, the delta or the result is not what the manifest describes.
    """
    staging.check(out, [base, delta], force)
    wanted, identity = manifest.load(delta)
    tensors = model_files.tensors(base)
    parts, gaps = [], {}
    for file in wanted.files:
        if file.delta is None:
            if not (delta / manifest.CARRIED / file.path).is_file():
                raise Failure(f"{delta / manifest.CARRIED / file.path}: missing from the delta; download it again")
            continue
        places = _places(delta, wanted, file)
        gaps[file.path] = _gaps(places[manifest.GAPS], file)
        for change in file.tensors:
            source = _source(base, delta, change, tensors)
            parts.append(_part(wanted, file, change, places[change.name], source))
    if template is not None:
        other_files.template_for(delta / manifest.CARRIED, template)
    free = staging.check_space(out, wanted.bytes)
    if dry_run:
        with jsonl.output(None) as lines:
            counts = {"tensors": wanted.tensors, "bytes": wanted.bytes, "files": len(wanted.files)}
            names = {"made_from": wanted.base, "base": str(base), "delta": str(delta), "out": str(out)}
            lines.write({"dry_run": True, **counts, **names, "free": free})
        return
    writing.reuse_memory()
    with (
        jsonl.output(None) as lines,
        staging.folder(out, [base, delta], force, f"apply-delta {identity} {template}") as work,
        jsonl.progress("apply-delta", quiet, wanted.bytes, "B") as tick,
    ):
        for file in wanted.files:
            if file.delta is not None:
                writing.allocate(work.fresh / file.path, file.bytes)
        with Files() as files:
            for file in wanted.files:
                if file.delta is None:
                    source_file = delta / manifest.CARRIED / file.path
                    if staging.copy(source_file, work.fresh / file.path) != (file.bytes, file.sha256):
                        raise Failure(f"{source_file}: size or SHA-256 differs from the delta's; download it again")
                    tick(file.bytes)
                    continue
                for (start, length), gap in zip(file.gaps(), gaps[file.path], strict=True):
                    files.write(work.fresh / file.path, start, memoryview(gap))
                    tick(length)
        written = writing.write(parts, work, jobs, lines, tick)
        if template is not None:
            other_files.template_for(work.fresh, template).save(work.fresh)
        totals = {"tensors": wanted.tensors, "bytes": wanted.bytes, "files": len(wanted.files)}
        totals["reused"] = written.reused
    with jsonl.output(None) as lines:
        lines.write({**totals, "verified": True, "out": str(out)})
    if not quiet:
        say(
            "apply-delta",
            f"{wanted.tensors} tensors in {len(wanted.files)} files, {wanted.bytes:,} bytes, "
            "every tensor of the result has the hash that the delta lists"
            + (f"; --template {template} changed its tokenizer's files" if template else ""),
        )
        _compare_files(base, wanted)


def _places(delta: Path, wanted: manifest.Manifest, file: manifest.File) -> dict[str, Tensor]:
    """Where a file's tensors and gaps are in its delta file. Raises Failure if manifest and file do not match."""
    assert file.delta is not None
    path = delta / file.delta
    if not path.is_file():
        raise Failure(f"{path}: missing from the delta; download it again")
    places = {place.name: place for place in model_files.read(path)}
    if manifest.GAPS not in places:
        raise manifest.damaged(path, manifest.GAPS, "missing")
    for change in file.tensors:
        place = places.get(change.name)
        if place is None or place.bytes != sum(change.chunks) or min(change.chunks, default=0) < 0:
            raise manifest.damaged(path, change.name, "not as long as the manifest says")
        if max(change.chunks, default=0) > 2 * wanted.chunk_bytes:
            raise manifest.damaged(path, change.name, "a chunk is too long")
        if len(change.chunks) != -(-change.bytes // wanted.chunk_bytes):
            raise manifest.damaged(path, change.name, "wrong number of chunks")
    return places


def _gaps(place: Tensor, file: manifest.File) -> list[bytes]:
    """The bytes of a file between its tensors, one item per gap. Raises Failure if they are damaged."""
    size = sum(length for _, length in file.gaps())
    if place.bytes > 2 * size + 1024:
        raise manifest.damaged(place.file, place.name, "too long")
    with Files() as files:
        packed = files.take(place.file, place.start, place.bytes)
    try:
        data = difference.unpack(packed, size)
    except difference.Damaged as error:
        raise manifest.damaged(place.file, place.name, str(error)) from None
    if blake3(data).hexdigest() != file.gaps_blake3:
        raise manifest.damaged(place.file, place.name, "its BLAKE3 is wrong")
    stretches, end = [], 0
    for _, length in file.gaps():
        stretches.append(data[end : end + length])
        end += length
    return stretches


def _source(base: Path, delta: Path, change: manifest.Change, tensors: dict[str, Tensor]) -> Tensor | None:
    """The base tensor that a change was made from. Raises Failure if the base has no such tensor."""
    if change.base is None:
        return None
    found = tensors.get(change.base.name)
    expected = described(change.base.dtype, change.base.shape)
    if found is None or (found.dtype, list(found.shape)) != (change.base.dtype, change.base.shape):
        has = f"is {found}" if found else "is missing"
        raise Failure(
            f"{base}: tensor {change.base.name} {has}, but the delta was made from {expected}: "
            "this is not the base of this delta"
        )
    if not comparable(found, change.dtype, tuple(change.shape)):
        raise Failure(
            f"{delta / manifest.NAME}: tensor {change.name}: {described(change.dtype, change.shape)} is no change of "
            f"{expected}"
        )
    return found


def _part(
    wanted: manifest.Manifest, file: manifest.File, change: manifest.Change, place: Tensor, source: Tensor | None
) -> writing.Part:
    """One tensor of the target, with the functions that write and check it."""
    width = WIDTHS.get(change.dtype, 1)

    def chunks(files: Files) -> Iterator[Bytes]:
        base = BaseStream(files, source, change.dtype)
        start, left = place.start, change.bytes
        for stored in change.chunks:
            payload = files.take(place.file, start, stored)
            beneath = base.next(min(left, wanted.chunk_bytes))
            start, left = start + stored, left - wanted.chunk_bytes
            try:
                yield difference.decode(payload, beneath, width, wanted.codec)
            except difference.Damaged as error:
                raise manifest.damaged(place.file, change.name, str(error)) from None

    def check(digest: str) -> None:
        if digest == change.blake3:
            return
        if source is not None and change.base is not None:
            _check_base(source, change, change.base)
        raise manifest.damaged(place.file, change.name, "its BLAKE3 is wrong")

    return writing.Part(change.name, file.path, change.start, change.bytes, chunks, check)


def _check_base(source: Tensor, change: manifest.Change, expected: manifest.Base) -> None:
    """Raise Failure if a base tensor is not the one that a change was made from."""
    digest = blake3()
    with Files() as files:
        for raw in files.chunks_of(source):
            digest.update(raw.data)
    found = digest.hexdigest()
    if found == expected.blake3:
        return
    if found == change.blake3:
        raise Failure(f"{source.file}: tensor {source.name} is the result's already: this delta was applied to it")
    raise Failure(
        f"{source.file}: tensor {source.name} is not the one that the delta was made from "
        f"(BLAKE3 {found}, expected {expected.blake3}): wrong or damaged base"
    )


def _compare_files(base: Path, wanted: manifest.Manifest) -> None:
    """Report where the base's tokenizer or configuration differs from that of the delta's maker."""
    other = [name for name, digest in other_files.hashes(base).items() if wanted.base_files.get(name, digest) != digest]
    if other:
        say(
            "apply-delta",
            f"{base}: {', '.join(other)}: differs from the delta maker's; the result gets the target's file",
        )


def verify(folder: Path, delta: Path, quiet: bool) -> None:
    """Check every file of a delta's target in a folder, one line per file; ignores others, unless they are weights.

    Raises Failure if one differs or is missing, or if there are other weights that a program may load instead.
    """
    wanted, _ = manifest.load(delta)
    if not folder.is_dir():
        raise Failure(f"{folder}: no such folder")
    wrong: list[str] = []
    right = 0
    with jsonl.output(None) as lines, jsonl.progress("apply-delta", quiet, wanted.bytes, "B") as tick:
        for file in wanted.files:
            sha256 = hashlib.sha256()
            path = folder / file.path
            there = path.is_file()
            if there:
                with open(path, "rb") as stream:
                    while data := stream.read(STEP):
                        sha256.update(data)
                        tick(len(data))
            found = sha256.hexdigest() if there else None
            if found != file.sha256:
                wrong.append(f"{path}: " + ("its SHA-256 differs from the manifest's" if there else "missing"))
            right += found == file.sha256
            lines.write({"file": file.path, "bytes": file.bytes, "sha256": found, "ok": found == file.sha256})
        known = {file.path for file in wanted.files}
        for path in sorted(folder.iterdir()):
            if path.name not in known and model_files.looks_like_weights(path.name.removesuffix(".index.json")):
                wrong.append(f"{path}: not part of the delta's target, but a program may load it instead; remove it")
        lines.write({"files": len(wanted.files), "sha256_verified": right, "out": str(folder)})
    if wrong:
        raise Failure(wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    if not quiet:
        say("apply-delta", f"{folder}: {len(wanted.files)} files, all as the delta lists them")
