"""export: a model as one GGUF file for llama.cpp, or as safetensors in another dtype or sharding."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vtools import options
from vtools.process import UsageFailure

Type = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k_m", "q5_k_m", "q6_k"]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id or a .gguf file.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="OUT", help="Write here, whole or not at all.")],
    to: Annotated[Literal["gguf", "safetensors"], typer.Option(help="One file, or a folder.")] = "gguf",
    type: Annotated[Type | None, typer.Option(help="How GGUF holds matrices; f16 if not given.")] = None,
    dtype: Annotated[
        options.Dtype | None, typer.Option(help="Floats of safetensors; as they are if not given.")
    ] = None,
    max_shard: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The largest safetensors file, as 500MB; 5GB if not given.")
    ] = None,
    template: options.TemplateName = None,
    jobs: options.Jobs = 2,
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it exists, once the new one is whole.")
    ] = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write MODEL as one GGUF file, which llama.cpp and gpt4all load, or as safetensors of another dtype.

    GGUF: models of type llama, mistral, qwen2 and qwen3 with SentencePiece or byte-level BPE tokenizers. The file holds
    the tokenizer, the special tokens and the chat template (--template gives another). The q-types store blocks of 32
    weights in 8, 5 or 4 bits, the output matrix in 8 (q8_0), vectors in 32. The K-quants (q4_k_m, q5_k_m, q6_k) are
    made by llama.cpp: its llama-quantize where that is installed, else the library of the extra `llama-cpp`. Memory
    does not grow with the model.

    stdout: a JSON line a tensor {"tensor", "type", "shape", "bytes"} (and "ms" where we encode it, "blake3" of
    safetensors), then one with the totals.

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
        raise UsageFailure(f"{out}: it is the model that is to be exported; choose another output file")
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
