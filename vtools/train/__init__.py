"""`vtools train`: fine-tune a chat model on conversations."""

import math
import os
import re
import signal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vtools import options, process
from vtools.files.lock import lock
from vtools.records import jsonl

# The hyper-parameters of the published models (LMSYS 2023, Stanford 2023); explicit options override them.
PRESETS: dict[str, dict[str, Any]] = {
    "vicuna-v1.1": {"template": "vicuna-v1.1", "batch": 128, "max_tokens": 2048},
    "vicuna-v0": {"template": "vicuna-v0", "batch": 32, "max_tokens": 2048},
    "alpaca": {"template": "alpaca", "batch": 128, "max_tokens": 512},
}
DEFAULTS: dict[str, Any] = {
    "epochs": 3, "batch": 128, "lr": 2e-5, "warmup": 0.03, "schedule": "cosine", "max_tokens": None, "template": None,
}  # fmt: skip
CORES = len(os.sched_getaffinity(0))
LORA_RATE = 2e-4  # ten times that of full fine-tuning: adapters start at zero


def train(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|FOLDER...]", help="Conversations: files, folders or globs; - is stdin (default)."
        ),
    ] = None,
    *,
    model: Annotated[
        str, typer.Option(envvar="VTOOLS_MODEL", metavar="MODEL", help="Fine-tune this folder, hub id or .gguf file.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="Save the tuned model here.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Train on this, like FILE on the command line; repeatable.")
    ] = None,
    preset: Annotated[
        Literal["vicuna-v1.1", "vicuna-v0", "alpaca"] | None,
        typer.Option(help="Use a published model's template and hyper-parameters; other options override them."),
    ] = None,
    epochs: Annotated[int | None, options.number(min=1, help="Train on the data N times. Default: 3.")] = None,
    max_steps: Annotated[int | None, options.number(min=1, help="Train N steps, whatever --epochs is.")] = None,
    batch: Annotated[
        int | None, options.number(min=1, help="Train on N conversations per step, all ranks together. Default: 128.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(min=0, metavar="RATE", help="Set the peak learning rate. Default: 2e-5; with --lora 2e-4."),
    ] = None,
    warmup: Annotated[
        float | None, options.number(min=0, help="Warm up for N steps, or for this share if below 1. Default: 0.03.")
    ] = None,
    schedule: Annotated[
        Literal["cosine", "linear", "constant"] | None,
        typer.Option(help="Which learning-rate schedule to follow after warm-up. Default: cosine."),
    ] = None,
    max_tokens: Annotated[
        int | None, options.number(min=2, help="Limit conversations to N tokens. Default: 2048, or the model's limit.")
    ] = None,
    overlong: Annotated[
        Literal["truncate", "drop", "error"],
        typer.Option(help="How to treat longer conversations: cut off their end, drop them, or fail."),
    ] = "truncate",
    rope_scaling: Annotated[
        Literal["linear", "yarn"] | None,
        typer.Option(help="Scale the positions (RoPE) to train with --max-tokens beyond the model's limit."),
    ] = None,
    template: options.TemplateName = None,
    system: options.SystemText = None,
    fold_system: options.FoldSystem = False,
    lora: Annotated[
        int | None,
        typer.Option(metavar="RANK", min=1, help="Train LoRA adapters of this rank on frozen weights (PEFT's format)."),
    ] = None,
    lora_alpha: Annotated[
        int | None, options.number(min=1, help="Scale adapters by N / RANK (--lora). Default: twice the rank.")
    ] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Add adapters to these linear layers, such as q_proj,v_proj (--lora). Default: all."
        ),
    ] = None,
    train_embeddings: Annotated[
        bool, typer.Option("--train-embeddings", help="Train embedding and head in full beside the adapters (--lora).")
    ] = False,
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", metavar="FILE", help="Report the loss on this held-out data, before and after."),
    ] = None,
    eval_every: Annotated[int, options.number(min=0, help="Report the held-out loss every N steps, too.")] = 0,
    samples: Annotated[int, options.number(min=0, help="Answer N held-out questions with each held-out loss.")] = 0,
    save_every: Annotated[
        str, typer.Option(metavar="STEPS|TIME", help="Save a checkpoint this often: 200 (steps), 10m, 1h.")
    ] = "10m",
    keep: Annotated[
        int | None, options.number(min=1, help="Keep N checkpoints, also after the run. Default: 2, and none after it.")
    ] = None,
    resume: Annotated[
        Literal["auto", "never"],
        typer.Option(help="Whether to resume from the newest checkpoint in --out (auto) or to start over (never)."),
    ] = "auto",
    nproc: Annotated[
        int | None,
        options.number(min=1, help="Start N ranks (processes) on this machine. Default: one per GPU, else one."),
    ] = None,
    nnodes: Annotated[int, options.number(min=1, help="Train on N machines; run the same command on each.")] = 1,
    rdzv: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet: a free port on one of them.")
    ] = None,
    dtype: Annotated[
        Literal["auto", options.Dtype],
        typer.Option(help="Which dtype to compute in; weights stay fp32. auto: bf16 where fast, fp16 on older GPUs."),
    ] = "auto",
    attention: Annotated[
        Literal["auto", "flash-attn", "torch"],
        typer.Option(help="Which attention kernel to use on GPUs; auto: flash-attn if installed."),
    ] = "auto",
    micro_tokens: Annotated[
        int | None, options.number(min=1, help="Set the tokens per micro-batch; fewer save memory. Default: what fits.")
    ] = None,
    recompute: Annotated[
        Literal["auto", "none", "selective", "full"],
        typer.Option(help="Which activations to recompute in the backward pass, to save memory. auto: what fits."),
    ] = "auto",
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Run torch.compile on each layer. Default: on GPUs.")
    ] = None,
    save_dtype: Annotated[options.Dtype, typer.Option(help="Which dtype to save the weights in.")] = "bf16",
    rejects: options.RejectsFile = None,
    jobs: options.Jobs = CORES,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Plan for this GPU (h200, a100, ...) instead of this machine (--dry-run)."),
    ] = None,
    prices: options.PricesFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Fine-tune a chat model on conversations; metrics go to stdout, one JSON line per step.

    The loss covers the assistant's answers and the token that ends each, nothing else. All input is read and tokenised
    before the first step; the tokens are cached for the next run. The folder --out gets weights (safetensors),
    tokenizer, template, a model card, and vtools.json, which records what they were made from.

    Every GPU of the machine gets a rank, a training process of its own. Weights are sharded over the ranks (FSDP2);
    they are kept in fp32, and layers compute in bf16. --nnodes and --rdzv join several machines; torchrun works too. A
    step trains on the same conversations whatever the number of ranks.

    To resume a killed run, give the same command again: on the same number of ranks the final weights are
    bit-identical. SIGTERM saves a checkpoint and exits with 75 (try again); SIGUSR1, or `touch FOLDER/SAVE`, saves one
    and continues. A LLaMA base without a template of its own gets vicuna-v1.1. Prices look like {"gpu": {"a100": 1.8}}.

    \b
    Examples:
      vtools split --tokenizer base chats.jsonl | vtools train --model base --out tuned > metrics.jsonl
      vtools train train.jsonl --model base --preset vicuna-v1.1 -n --gpu a100 --nproc 8 --prices prices.json
      vtools train train.jsonl more/ --model base --eval held.jsonl --out tuned --save-every 30m >> metrics.jsonl
    """
    given = {name: value for name, value in locals().items() if name != "files"}
    if out is None and not dry_run:
        raise process.UsageFailure("--out FOLDER is required (or --dry-run)")
    every = _every(save_every)
    sources = [*(files or ()), *(data or ())] or ["-"]
    if [*sources, evaluation].count("-") > 1:
        raise process.UsageFailure("stdin (-) can be read once, as conversations or as --eval")
    if nnodes > 1 and not rdzv:
        raise process.UsageFailure("--nnodes needs --rdzv HOST:PORT, the same on every machine")
    for name in ("lora_alpha", "lora_targets", "train_embeddings"):
        if given[name] and not lora:
            raise process.UsageFailure(f"--{name.replace('_', '-')} needs --lora RANK, whose adapters it is about")
    if rdzv and nnodes == 1:
        raise process.UsageFailure("--rdzv needs --nnodes N, the number of machines that meet there")
    if samples and not evaluation:
        raise process.UsageFailure("--samples needs --eval FILE, whose questions it asks")
    if eval_every and not evaluation:
        raise process.UsageFailure("--eval-every needs --eval FILE, whose loss it reports")
    for name in ("lr", "warmup"):
        if given[name] is not None and not math.isfinite(given[name]):
            raise process.UsageFailure(f"--{name} {given[name]}: give a finite number")
    if gpu and not dry_run:
        raise process.UsageFailure("--gpu needs --dry-run; a run uses the GPUs of this machine")
    if prices and not dry_run:
        raise process.UsageFailure("--prices needs --dry-run")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it means "save": ignored until there is something to save
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and os.getsid(0) != os.getpid():
        process.die_with_parent(signum=signal.SIGTERM)  # but not under nohup or setsid, which detach on purpose
    from vtools.train import job
    from vtools.train.dry_run import foreseen
    from vtools.train.request import Request

    if lora:
        given["lora_alpha"] = lora_alpha or 2 * lora
        targets = {name.strip() for name in (lora_targets or "").split(",")} - {""}
        if lora_targets is not None and not targets:
            raise process.UsageFailure(f"--lora-targets {lora_targets}: name linear layers, such as q_proj,v_proj")
        given["lora_targets"] = sorted(targets) or None
    chosen = DEFAULTS | ({"lr": LORA_RATE} if lora else {}) | (PRESETS[preset] if preset else {})
    chosen |= {name: given[name] for name in chosen if given[name] is not None}
    request = Request(**given | chosen | {"data": sources, "save_every": every})
    if dry_run or out is None:
        with jsonl.output(None) as output:
            output.write(foreseen(request))
        return
    if nnodes > 1 or "RANK" in os.environ:  # rank 0 locks the shared folder
        job.run(request, out)
        return
    with lock(out, tidy=True):
        job.run(request, out)


def _every(text: str) -> tuple[int, float]:
    """`200` to (200 steps, 0), `10m` to (0, 600 seconds)."""
    found = re.fullmatch(r"(\d+)([smh]?)", text)
    if not found or not int(found[1]):
        raise process.UsageFailure(f"--save-every {text}: give a number of steps (200) or a time (90s, 10m, 1h)")
    number = int(found[1])
    return (number, 0.0) if not found[2] else (0, number * {"s": 1.0, "m": 60.0, "h": 3600.0}[found[2]])
