"""make-delta and apply-delta: a tuned model as its exact difference from its base, and back, byte for byte."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from vtools import options
from vtools.process import UsageFailure

Base = Annotated[str | None, typer.Option("--base", "--base-model-path", metavar="MODEL", help="Name the base model.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists, once the new one is complete.")]


def make_delta(
    operands: Annotated[list[str] | None, typer.Argument(metavar="BASE TARGET OUT", help="Here or as options.")] = None,
    base: Base = None,
    target: Annotated[
        str | None, typer.Option("--target", "--target-model-path", metavar="MODEL", help="Name the tuned model.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", "--delta", "--delta-path", metavar="FOLDER", help="Write this folder.")
    ] = None,
    codec: Annotated[Literal["zstd", "raw"], typer.Option(help="Which codec: zstd is small, raw is fast.")] = "zstd",
    jobs: options.Jobs = 2,
    force: Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write a tuned model, TARGET, as its difference from BASE: a folder to publish instead of the whole model.

    The difference is exact: apply-delta restores every file of TARGET byte for byte. A model is a folder, a hub id
    (owner/name, or hf:owner/name) or a single .safetensors or .bin file; a .gguf file is converted first. The dtypes of
    the two may differ, and TARGET may have more rows (a larger vocabulary). Files of TARGET that hold no weights are
    copied into OUT, except hidden ones (.env, .git) and checkpoints. Pickled weights (.bin) are read without executing
    the pickle. Memory use does not grow with the model. After a kill, the same command resumes.

    stdout: one JSON line per tensor {"tensor", "bytes", "delta_bytes", "blake3", "ms"}, then one with the totals.

    \b
    Examples:
      vtools make-delta llama vicuna vicuna-delta
      vtools make-delta --base huggyllama/llama-7b --target vicuna --delta vicuna-delta > tensors.jsonl
      vtools make-delta -n llama vicuna vicuna-delta
    """
    names = {"BASE": base, "TARGET": target, "OUT": out}
    base, target, out = _fill(names, operands or [])
    from vtools.delta import make

    known_as = Path(base).resolve().name if Path(base).exists() else base  # do not publish a local path
    make.make(
        _place(base), _place(target), Path(out), name=known_as, codec="planes" if codec == "zstd" else codec, jobs=jobs,
        force=force, quiet=quiet, dry_run=dry_run,
    )  # fmt: skip


def apply_delta(
    operands: Annotated[list[str] | None, typer.Argument(metavar="BASE DELTA OUT", help="Here or as options.")] = None,
    base: Base = None,
    delta: Annotated[
        str | None, typer.Option("--delta", "--delta-path", metavar="DELTA", help="Name the delta.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", "--target", "--target-model-path", metavar="FOLDER", help="Write this folder."),
    ] = None,
    template: options.TemplateName = None,
    add_dtype: Annotated[
        options.Dtype | None,
        typer.Option(help="Which dtype to add and write in, without delta.json; default: the delta's own."),
    ] = None,
    extra_rows: Annotated[
        Literal["zero", "mean"] | None,
        typer.Option(help="Which base to assume for added rows, without delta.json (Vicuna v0: zero; Alpaca: mean)."),
    ] = None,
    expect_sum: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Check that all weights sum to this, within 0.01 (Alpaca; no delta.json)."),
    ] = None,
    verify: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Check FOLDER against the delta's hashes, and do nothing else.")
    ] = None,
    jobs: options.Jobs = 2,
    force: Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Rebuild a tuned model from BASE and DELTA, as the folder OUT.

    Each is a folder, a hub id (owner/name, or hf:owner/name) or a single .safetensors or .bin file; pickled weights are
    read without executing the pickle. A delta from make-delta restores the tuned model's files byte for byte: every
    tensor of the result is checked against its hash, and if one is wrong, BASE is checked too. OUT appears only when
    it is complete. Memory use does not grow with the model. After a kill, the same command resumes.

    Deltas without delta.json, as FastChat and Alpaca published them, are added in their own dtype, with the same bits
    as FastChat, and written as safetensors; nothing can verify their base. They carry no prompt template: --template
    stores one in OUT.

    stdout: one JSON line per tensor {"tensor", "bytes", "blake3", "ms"}, then one with the totals.

    \b
    Examples:
      vtools apply-delta llama vicuna-delta vicuna
      vtools apply-delta --base llama --target vicuna --delta vicuna-delta --template vicuna-v1.1 > tensors.jsonl
      vtools apply-delta --delta vicuna-delta --verify vicuna
      vtools apply-delta hf:huggyllama/llama-7b hf:lmsys/vicuna-7b-delta-v1.1 vicuna-7b --template vicuna-v1.1
    """
    if verify is not None:
        deltas = [name for name in (delta, *(operands or [])) if name]
        if len(deltas) != 1:
            raise UsageFailure("--verify FOLDER needs --delta DELTA, and no other argument")
        given = (base, out, template, add_dtype, extra_rows, expect_sum)
        if any(value is not None for value in given) or force or dry_run:
            raise UsageFailure("--verify FOLDER only compares files: give nothing else but --delta")
        delta = deltas[0]
        from vtools.delta import apply

        apply.verify(Path(verify), _place(delta, ["*"]), quiet)
        return
    base, delta, out = _fill({"BASE": base, "DELTA": delta, "OUT": out}, operands or [])
    from vtools.delta import manifest

    place = _place(delta, ["*"])
    if (place / manifest.NAME).exists():
        chosen = {"--add-dtype": add_dtype, "--extra-rows": extra_rows, "--expect-sum": expect_sum}
        for option, value in chosen.items():
            if value is not None:
                raise UsageFailure(f"{option}: {delta} has a delta.json, which decides that; leave the option out")
        from vtools.delta import apply

        apply.apply(
            _place(base), place, Path(out), template=template, jobs=jobs, force=force, quiet=quiet, dry_run=dry_run
        )
        return
    from vtools.delta import apply_published
    from vtools.weights.tensor import DTYPE_NAMES

    apply_published.apply(
        _place(base), place, Path(out), dtype=DTYPE_NAMES.get(add_dtype or ""), extra_rows=extra_rows,
        expect_sum=expect_sum, template=template, jobs=jobs, force=force, quiet=quiet, dry_run=dry_run,
    )  # fmt: skip


def _fill(names: dict[str, str | None], operands: list[str]) -> list[str]:
    """The three values; those without an option come from the operands, in order. Raises UsageFailure."""
    rest = iter(operands)
    values = {name: value if value is not None else next(rest, None) for name, value in names.items()}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise UsageFailure(f"{' and '.join(missing)} not given; see --help")
    if (extra := next(rest, None)) is not None:
        raise UsageFailure(f"{extra}: too many arguments; see --help")
    return [value for value in values.values() if value]


def _place(reference: str, patterns: list[str] | None = None) -> Path:
    """A model's folder, or its single file of weights; only hub ids and .gguf files need `models`."""
    path = Path(reference)
    if path.is_dir():
        return path
    if (shard := re.search(r"-of-(\d+)\.", path.name)) and int(shard[1]) > 1 and path.is_file():
        raise UsageFailure(f"{reference}: one of {int(shard[1])} shards; give the folder that holds them all")
    if path.is_file() and path.suffix != ".gguf":
        return path.parent if path.name == "delta.json" else path
    from vtools.models.reference import model_folder

    return model_folder(reference, patterns)
