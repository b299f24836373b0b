"""Fine-tune a chat model on conversations."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from vtools import jsonl, options, process


def train(
    model: Annotated[str, typer.Option("--model", envvar="VTOOLS_MODEL", help="Base: folder, hub id or .gguf file.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder for the tuned model.")] = None,
    data: Annotated[str, typer.Option("--data", metavar="FILE", help="Conversations of any shape; - is stdin.")] = "-",
    epochs: Annotated[int, typer.Option(min=1, help="Times that every conversation is seen.")] = 3,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Train exactly this many steps, whatever --epochs is.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Conversations in an optimiser step.")] = 128,
    micro_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens at a time: memory, not result. Default: 2048 on CPU, 8192 on CUDA."),
    ] = None,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate; it then falls along a cosine to 0.")] = 2e-5,
    warmup: Annotated[float, typer.Option(min=0, help="Warm-up: a share of the steps if below 1, else steps.")] = 0.03,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Longest conversation. Default: 2048, or the model's limit if lower.")
    ] = None,
    overlong: Annotated[
        Literal["truncate", "drop", "error"],
        typer.Option(help="A longer one is cut at the right, dropped, or an error."),
    ] = "truncate",
    template: options.TemplateName = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", metavar="FILE", help="Held-out conversations: their loss before and after.")
    ] = None,
    eval_every: Annotated[int, typer.Option(min=0, help="Also take the held-out loss every so many steps.")] = 0,
    save_every: Annotated[
        str, typer.Option(metavar="STEPS|TIME", help="Checkpoint: 200 (steps), 10m, 90s, 1h.")
    ] = "10m",
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Checkpoints to keep, after the run too. Default: 2, and none once it has ended."),
    ] = None,
    resume: Annotated[
        Literal["auto", "never"], typer.Option(help="Go on from the newest checkpoint in --out, or start over.")
    ] = "auto",
    dtype: Annotated[
        Literal["auto", "bf16", "fp32"],
        typer.Option(help="Compute in this; master weights are fp32. auto: bf16 where fast."),
    ] = "auto",
    save_dtype: Annotated[Literal["bf16", "fp32", "fp16"], typer.Option(help="Dtype of the saved weights.")] = "bf16",
    rejects: options.RejectsFile = None,
    jobs: options.Jobs = 1,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Fine-tune a chat model on conversations; metrics go to stdout, one JSON line a step.

    Trains the assistant's answers and the token that ends each, nothing else, with every weight free. Reads all of
    its input before the first step. --out receives safetensors, tokenizer, template and vtools.json, which says where
    they came from.

    A killed run goes on when the same command is given again, and ends with the same weights to the last bit. SIGTERM
    saves and exits 75; SIGUSR1, or `touch DIR/SAVE`, saves and goes on.

    \b
    Examples:
      vtools split --tokenizer base chats.jsonl | vtools train --model base --out tuned > metrics.jsonl
      vtools train --model base --data train.jsonl --template vicuna-v1.1 --dry-run
      vtools train --model base --data train.jsonl --eval held.jsonl --out tuned --save-every 30m >> metrics.jsonl
    """
    if out is None and not dry_run:
        raise process.UsageFailure("--out DIR is needed (or --dry-run)")
    every = _every(save_every)
    if data == "-" and evaluation == "-":
        raise process.UsageFailure("--data and --eval cannot both be stdin")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it means "save": harmless before there is something to save
    from vtools.train import job

    request = job.Request(
        model=model,
        data=data,
        epochs=epochs,
        max_steps=max_steps,
        batch=batch,
        micro_tokens=micro_tokens,
        lr=lr,
        warmup=warmup,
        max_tokens=max_tokens,
        overlong=overlong,
        template=template,
        evaluation=evaluation,
        eval_every=eval_every,
        save_every=every,
        keep=keep,
        resume=resume == "auto",
        dtype=dtype,
        save_dtype=save_dtype,
        rejects=rejects,
        jobs=jobs,
        seed=seed,
        quiet=quiet,
        verbose=verbose,
    )
    if dry_run or out is None:
        with jsonl.output(None) as output:
            output.write(job.dry_run(request))
        return
    with process.lock(out), jsonl.output(None) as output:
        job.run(request, out, output.write)


def _every(text: str) -> tuple[int, float]:
    """`200` to (200 steps, 0), `10m` to (0, 600 seconds)."""
    found = re.fullmatch(r"(\d+)([smh]?)", text)
    if not found or not int(found[1]):
        raise process.UsageFailure(f"--save-every {text}: a number of steps (200) or a time (90s, 10m, 1h)")
    number = int(found[1])
    return (number, 0.0) if not found[2] else (0, number * {"s": 1.0, "m": 60.0, "h": 3600.0}[found[2]])
