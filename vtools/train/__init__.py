"""Fine-tune a chat model on conversations."""

import os
import re
import signal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vtools import options, process
from vtools.files.lock import lock
from vtools.records import jsonl

# What made the published models (LMSYS 2023, Stanford 2023); a flag that is given wins.
PRESETS: dict[str, dict[str, Any]] = {
    "vicuna-v1.1": {"template": "vicuna-v1.1", "batch": 128, "max_tokens": 2048},
    "vicuna-v0": {"template": "vicuna-v0", "batch": 32, "max_tokens": 2048},
    "alpaca": {"template": "alpaca", "batch": 128, "max_tokens": 512},
}
DEFAULTS: dict[str, Any] = {
    "epochs": 3, "batch": 128, "lr": 2e-5, "warmup": 0.03, "schedule": "cosine", "max_tokens": None, "template": None,
}  # fmt: skip
CORES = len(os.sched_getaffinity(0))
LORA_RATE = 2e-4  # adapters begin at zero, and take steps ten times as long


def train(
    model: Annotated[str, typer.Option(envvar="VTOOLS_MODEL", help="Base: folder, hub id or .gguf file.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder for the tuned model.")] = None,
    data: Annotated[str, typer.Option(metavar="FILE", help="Conversations of any shape; - is stdin.")] = "-",
    preset: Annotated[
        Literal["vicuna-v1.1", "vicuna-v0", "alpaca"] | None,
        typer.Option(help="The published template and hyper-parameters; other flags change them."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Times each conversation is seen. Default: 3.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Steps in all, whatever --epochs is.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Conversations in a step, of all ranks. Default: 128.")
    ] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Peak learning rate. Default: 2e-5; --lora: 2e-4.")] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, help="Warm-up: a share of the steps if below 1, else steps. Default: 0.03.")
    ] = None,
    schedule: Annotated[
        Literal["cosine", "linear", "constant"] | None,
        typer.Option(help="How the rate goes to 0 after the warm-up, or stays. Default: cosine."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Longest conversation. Default: 2048, or the model's limit if lower.")
    ] = None,
    overlong: Annotated[
        Literal["truncate", "drop", "error"],
        typer.Option(help="A longer one is cut at the right, dropped, or an error."),
    ] = "truncate",
    rope_scaling: Annotated[
        Literal["linear", "yarn"] | None,
        typer.Option(help="For --max-tokens beyond the model's limit: stretch its positions."),
    ] = None,
    template: options.TemplateName = None,
    system: options.SystemText = None,
    lora: Annotated[
        int | None,
        typer.Option(metavar="RANK", min=1, help="Train adapters of this rank beside frozen weights (PEFT's format)."),
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", metavar="FILE", help="Held-out conversations: their loss before and after.")
    ] = None,
    eval_every: Annotated[int, typer.Option(min=0, help="Also take the held-out loss every so many steps.")] = 0,
    samples: Annotated[int, typer.Option(min=0, help="With that loss, answer so many of its first questions.")] = 0,
    save_every: Annotated[str, typer.Option(metavar="STEPS|TIME", help="Checkpoint: 200 (steps), 10m, 1h.")] = "10m",
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Checkpoints to keep, after the run too. Default: 2, and none once it has ended."),
    ] = None,
    resume: Annotated[
        Literal["auto", "never"], typer.Option(help="Go on from the newest checkpoint in --out, or start over.")
    ] = "auto",
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks on this machine. Default: one a GPU, else one.")
    ] = None,
    nnodes: Annotated[int, typer.Option(min=1, help="Machines; give the same command on each.")] = 1,
    rdzv: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet: a free port of one of them.")
    ] = None,
    dtype: Annotated[
        Literal["auto", options.Dtype],
        typer.Option(help="Compute in this; master weights are fp32. auto: bf16 where fast, fp16 on older GPUs."),
    ] = "auto",
    attention: Annotated[
        Literal["auto", "flash-attn", "torch"],
        typer.Option(help="On GPUs: the package flash-attn, or torch's own kernel; auto: the first if it is there."),
    ] = "auto",
    micro_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens at a time on a rank: memory, not result. Default: what fits.")
    ] = None,
    recompute: Annotated[
        Literal["auto", "none", "selective", "full"],
        typer.Option(help="Activations made again in the backward pass, to save memory. auto: what fits."),
    ] = "auto",
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile each layer. Default: on GPUs.")
    ] = None,
    save_dtype: Annotated[options.Dtype, typer.Option(help="Dtype of the saved weights.")] = "bf16",
    rejects: options.RejectsFile = None,
    jobs: options.Jobs = CORES,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --dry-run: plan for this GPU (h200, a100, ...), not for here."),
    ] = None,
    prices: options.PricesFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Fine-tune a chat model on conversations; metrics go to stdout, one JSON line a step.

    Trains the assistant's answers and the token that ends each, nothing else. Reads all of its input before the first
    step; a second run on the same data finds it tokenised. --out receives safetensors, tokenizer, template, a model
    card, and vtools.json, which says where they came from.

    On a machine with GPUs every one gets a rank (FSDP2: fp32 weights cut over the ranks, gathered in bf16); --nnodes
    and --rdzv join several machines, and torchrun works as well. The same conversations make each step on any number
    of ranks.

    A killed run goes on when the same command is given again, and ends with the same weights to the last bit on as many
    ranks. SIGTERM saves and exits 75; SIGUSR1, or `touch DIR/SAVE`, saves and goes on.

    \b
    Examples:
      vtools split --tokenizer base chats.jsonl | vtools train --model base --out tuned > metrics.jsonl
      vtools train --model base --data train.jsonl --preset vicuna-v1.1 -n --gpu a100 --nproc 8 --prices prices.json
      vtools train --model base --data train.jsonl --eval held.jsonl --out tuned --save-every 30m >> metrics.jsonl
    """
    given = dict(locals())
    if out is None and not dry_run:
        raise process.UsageFailure("--out DIR is needed (or --dry-run)")
    every = _every(save_every)
    if data == "-" and evaluation == "-":
        raise process.UsageFailure("--data and --eval cannot both be stdin")
    if nnodes > 1 and not rdzv:
        raise process.UsageFailure("--nnodes needs --rdzv HOST:PORT, the same on every machine")
    if samples and not evaluation:
        raise process.UsageFailure("--samples asks the questions of --eval FILE")
    if gpu and not dry_run:
        raise process.UsageFailure("--gpu is for --dry-run; a run takes the GPUs that are there")
    if prices and not dry_run:
        raise process.UsageFailure("--prices is for --dry-run")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it means "save": harmless before there is something to save
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and os.getsid(0) != os.getpid():
        process.die_with_parent(signum=signal.SIGTERM)  # but not under nohup or setsid, which detach on purpose
    from vtools.train import job
    from vtools.train.dry_run import foreseen
    from vtools.train.request import Request

    chosen = DEFAULTS | ({"lr": LORA_RATE} if lora else {}) | (PRESETS[preset] if preset else {})
    chosen |= {name: given[name] for name in chosen if given[name] is not None}
    request = Request(**given | chosen | {"save_every": every})
    if dry_run or out is None:
        with jsonl.output(None) as output:
            output.write(foreseen(request))
        return
    if nnodes > 1 or "RANK" in os.environ:  # rank 0 locks the folder, which the machines share
        job.run(request, out)
        return
    with lock(out):
        job.run(request, out)


def _every(text: str) -> tuple[int, float]:
    """`200` to (200 steps, 0), `10m` to (0, 600 seconds)."""
    found = re.fullmatch(r"(\d+)([smh]?)", text)
    if not found or not int(found[1]):
        raise process.UsageFailure(f"--save-every {text}: a number of steps (200) or a time (90s, 10m, 1h)")
    number = int(found[1])
    return (number, 0.0) if not found[2] else (0, number * {"s": 1.0, "m": 60.0, "h": 3600.0}[found[2]])
