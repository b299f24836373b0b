"""make-delta and apply-delta: a tuned model as its exact difference to its base, and back, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vtools import options
from vtools.process import UsageFailure

Base = Annotated[str | None, typer.Option("--base", "--base-model-path", metavar="MODEL", help="The base model.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists, once the new one is whole.")]


def make_delta(
    operands: Annotated[list[str] | None, typer.Argument(metavar="BASE TARGET OUT")] = None,
    base: Base = None,
    target: Annotated[
        str | None, typer.Option("--target", "--target-model-path", metavar="MODEL", help="The tuned model.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", "--delta", "--delta-path", metavar="FOLDER", help="A new folder.")
    ] = None,
    codec: Annotated[Literal["zstd", "raw"], typer.Option("--codec", help="zstd is small, raw is quick.")] = "zstd",
    force: Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write what turns BASE into TARGET as the folder OUT, to publish instead of the whole model.

    The difference is exact: apply-delta gives back every file of TARGET byte for byte. Each model is a folder of
    safetensors files, a hub id or a .gguf file, sharded in any way; dtypes may differ, and TARGET may have more rows
    (a larger vocabulary). Its other files are carried along. Memory does not grow with the model.

    stdout: a JSON line a tensor {"tensor", "bytes", "delta_bytes", "blake3", "ms"}, then one with the totals.

    \b
    Examples:
      vtools make-delta llama vicuna vicuna-delta
      vtools make-delta --base huggyllama/llama-7b --target vicuna --delta vicuna-delta > tensors.jsonl
      vtools make-delta -n llama vicuna vicuna-delta
    """
    names = {"BASE": base, "TARGET": target, "OUT": out}
    base, target, out = _fill(names, operands or [])
    from vtools.delta import make

    known_as = Path(base).resolve().name if Path(base).exists() else base  # a path is nobody else's business
    make.make(_folder(base), _folder(target), Path(out), known_as, codec, force, quiet, dry_run)


def apply_delta(
    operands: Annotated[list[str] | None, typer.Argument(metavar="BASE DELTA OUT")] = None,
    base: Base = None,
    delta: Annotated[str | None, typer.Option("--delta", "--delta-path", metavar="DELTA", help="The delta.")] = None,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", "--target", "--target-model-path", metavar="FOLDER", help="A new folder."),
    ] = None,
    verify: Annotated[
        str | None, typer.Option("--verify", metavar="FOLDER", help="Only check FOLDER against the delta's hashes.")
    ] = None,
    force: Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Rebuild a tuned model as the folder OUT from BASE and a DELTA.

    A delta made by make-delta gives the tuned model's files byte for byte: every tensor of BASE and of the result is
    checked while it passes, every file before OUT appears under its name. A delta without delta.json (as FastChat
    published them, safetensors) is added in its own dtype, which gives FastChat's bits; nothing can check that base.
    Memory does not grow with the model.

    stdout: a JSON line a tensor {"tensor", "bytes", "blake3", "ms"}, then one with the totals.

    \b
    Examples:
      vtools apply-delta llama vicuna-delta vicuna
      vtools apply-delta --base llama --target vicuna --delta vicuna-delta > tensors.jsonl
      vtools apply-delta --delta vicuna-delta --verify vicuna
    """
    if verify is not None:
        if delta is None and operands:
            delta = operands[-1]
        if delta is None:
            raise UsageFailure("--verify needs --delta DELTA")
        from vtools.delta import apply

        apply.verify(Path(verify), _folder(delta, ["*"]), quiet)
        return
    base, delta, out = _fill({"BASE": base, "DELTA": delta, "OUT": out}, operands or [])
    from vtools.delta import add, apply, manifest

    place = _folder(delta, ["*"])
    rebuild = apply.apply if (place / manifest.NAME).exists() else add.add
    rebuild(_folder(base), place, Path(out), force, quiet, dry_run)


def _fill(names: dict[str, str | None], operands: list[str]) -> list[str]:
    """The three values, those that no option gave taken from the operands in order. Raises UsageFailure."""
    rest = iter(operands)
    values = {name: value if value is not None else next(rest, None) for name, value in names.items()}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise UsageFailure(f"{' and '.join(missing)} not given; see --help")
    if (extra := next(rest, None)) is not None:
        raise UsageFailure(f"{extra}: one operand too many; see --help")
    return [value for value in values.values() if value]


def _folder(reference: str, patterns: list[str] | None = None) -> Path:
    """A model's folder; only hub ids and .gguf files need the machinery of models."""
    if Path(reference).is_dir():
        return Path(reference)
    from vtools import model

    return model.folder(reference, patterns)
