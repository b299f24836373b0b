"""`vtools export`: a model as one GGUF file for llama.cpp, or as safetensors in another dtype or sharding."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vtools import options
from vtools.process import UsageFailure

Type = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k_m", "q5_k_m", "q6_k"]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id or a .gguf file.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="OUT", help="Write this, whole or not at all.")],
    to: Annotated[Literal["gguf", "safetensors"], typer.Option(help="Which format to write.")] = "gguf",
    type: Annotated[Type | None, typer.Option(help="Which type a GGUF file stores matrices in. Default: f16.")] = None,
    dtype: Annotated[
        options.Dtype | None, typer.Option(help="Which dtype safetensors store floats in. Default: unchanged.")
    ] = None,
    max_shard: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Limit safetensors files to this size, such as 500MB. Default: 5GB."),
    ] = None,
    template: options.TemplateName = None,
    jobs: options.Jobs = 2,
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it exists, once the new one is complete.")
    ] = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write MODEL as one GGUF file, which llama.cpp and gpt4all load, or as safetensors in another dtype.

    GGUF is for models of type llama, mistral, qwen2 and qwen3 with a SentencePiece or byte-level BPE tokenizer. The
    file includes the tokenizer, special tokens and chat template (--template replaces it). Types q8_0, q5_* and q4_*
    quantise blocks of 32 weights to 8, 5 or 4 bits each; the output matrix keeps 8 bits (q8_0), vectors 32. K-quants
    (q4_k_m, q5_k_m, q6_k) are computed by llama.cpp: by its llama-quantize if installed, else by the library of the
    extra `llama-cpp`. Memory use does not grow with the model.

    stdout: one JSON line per tensor {"tensor", "type", "shape", "bytes"}, with "ms" unless llama.cpp encoded it, or
    "blake3" for safetensors; then one with the totals.

    \b
    Examples:
      vtools export vicuna --type q8_0 -o vicuna-q8_0.gguf
      vtools export vicuna -o vicuna-f16.gguf > tensors.jsonl
      vtools export vicuna --to safetensors --dtype fp16 --max-shard 2GB -o vicuna-fp16
      vtools export -n vicuna --type q4_0 -o vicuna-q4_0.gguf
    """
    for name, value, fits in (
        ("--type", type, "gguf"),
        ("--template", template, "gguf"),
        ("--dtype", dtype, "safetensors"),
        ("--max-shard", max_shard, "safetensors"),
    ):
        if value is not None and to != fits:
            raise UsageFailure(f"{name} goes with --to {fits}")
    from vtools.models.reference import hub_name, model_folder

    source, target = Path(model), Path(out)
    if source.is_file() and target.exists() and target.samefile(source):
        raise UsageFailure(f"{out}: is the model to be exported; choose another output file")
    place = model_folder(model)
    if to == "safetensors":
        from vtools.export import safetensors_files

        largest = safetensors_files.size(max_shard or "5GB")
        safetensors_files.write(
            place, target, dtype=dtype, largest=largest, jobs=jobs, force=force, quiet=quiet, dry_run=dry_run
        )
        return
    name = (hub_name(model) or str(source.resolve())).rpartition("/")[2]
    from vtools.export import gguf_file

    gguf_file.write(
        place, name, target, kind=type or "f16", template=template, jobs=jobs, force=force, quiet=quiet, dry_run=dry_run
    )
