"""A training job from its command line to its ranks: reading, refusing, and saying what it will cost."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtools.models.reference import model_folder
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure, UsageFailure
from vtools.train import data, token_cache
from vtools.train import schedule as plan
from vtools.train.data import Corpus, Overlong

DEFAULT_MAX_TOKENS = 2048


@dataclass(frozen=True)
class Request:
    """The command line, parsed."""

    model: str
    data: str
    epochs: int
    max_steps: int | None
    batch: int
    micro_tokens: int | None
    lr: float
    warmup: float
    schedule: str
    max_tokens: int | None
    overlong: Overlong
    rope_scaling: str | None
    template: str | None
    lora: int | None
    evaluation: str | None
    eval_every: int
    samples: int
    save_every: tuple[int, float]
    keep: int | None
    resume: bool
    nproc: int | None
    nodes: int
    rendezvous: str | None
    dtype: str
    attention: str
    recompute: str
    compiled: bool | None
    save_dtype: str
    rejects: str | None
    jobs: int
    seed: int
    gpu: str | None
    price: float | None
    quiet: bool
    verbose: bool


@dataclass(frozen=True)
class Inputs:
    """What was read and decided before any weight is loaded; travels to every rank."""

    folder: Path  # of the base
    template_name: str
    template_source: str
    corpus: Corpus
    held_out: Corpus | None
    max_tokens: int
    rope: dict[str, Any] | None
    steps: int
    warmup: int
    nproc: int  # ranks on this node

    def summary(self) -> dict[str, Any]:
        """The counts, for the first line of the metrics and for the dry run."""
        return {
            "steps": self.steps,
            "warmup_steps": self.warmup,
            "conversations": len(self.corpus),
            "rejected": self.corpus.rejected,
            "reasons": dict(sorted(self.corpus.reasons.items())),
            "truncated": self.corpus.truncated,
            "data_tokens": self.corpus.tokens,
            "data_trained_tokens": self.corpus.trained_tokens,
        }


def read(request: Request, weights: bool = True) -> Inputs:
    """Read and tokenise all of the input. Raises Failure where nothing could be learned from it.

    Without `weights`, a hub model's are not downloaded.
    """
    tokenizer = load_tokenizer(request.model)
    chosen = load_template(request.template, tokenizer)
    vocabulary, limit = _sizes(tokenizer.folder)
    max_tokens = request.max_tokens or min(DEFAULT_MAX_TOKENS, limit or DEFAULT_MAX_TOKENS)
    rope = None
    if limit and max_tokens > limit:
        if not request.rope_scaling:
            raise UsageFailure(
                f"--max-tokens {max_tokens}: {request.model} was made for {limit} positions; "
                f"--rope-scaling linear stretches them, as Vicuna 16k did"
            )
        rope = {"rope_type": request.rope_scaling, "factor": float(math.ceil(max_tokens / limit))}
    first = os.environ.get("RANK", "0") == "0"  # under torchrun every rank comes here, and finds the first one's work
    if "RANK" in os.environ:
        for name, file in (("--data", request.data), ("--eval", request.evaluation)):
            if file == "-":
                raise UsageFailure(f"under torchrun every rank reads the data: give {name} FILE")
    quiet = request.quiet or not first
    held_out = None
    if request.evaluation:
        held_out = token_cache.read(
            request.evaluation, chosen, max_tokens, request.overlong,
            rejects=os.devnull if request.rejects else None, jobs=request.jobs, quiet=True,
        )  # fmt: skip
        if held_out.rejected and not quiet:
            print(held_out.line().replace("vtools train:", "vtools train: --eval:"), file=sys.stderr)
    rejects = request.rejects if first or not request.rejects else os.devnull
    corpus = token_cache.read(
        request.data, chosen, max_tokens, request.overlong, rejects=rejects, jobs=request.jobs, quiet=quiet
    )
    largest = max(corpus.largest, held_out.largest if held_out else 0)
    if vocabulary and largest >= vocabulary:
        raise Failure(
            f"{request.model}: the tokenizer gives token {largest}, the model has rows for {vocabulary}: "
            f"they do not belong together; use the model's own tokenizer, or a template without added tokens"
        )
    steps = plan.steps_of(len(corpus), request.batch, request.epochs, request.max_steps)
    warmup = plan.warmup_steps(request.warmup, steps)
    if steps == 1 and warmup:
        raise Failure(
            f"the whole run is one step ({len(corpus)} conversations, --batch {request.batch}), and it is warm-up, "
            f"at rate 0: nothing would be learned; lower --batch, raise --epochs, or give --warmup 0"
        )
    folder = model_folder(request.model) if weights else tokenizer.folder
    return Inputs(
        folder, chosen.name, chosen.source, corpus, held_out, max_tokens, rope, steps, warmup, _ranks_here(request)
    )


def _ranks_here(request: Request) -> int:
    """Ranks on this node: as torchrun or --nproc say, else one a GPU, else one."""
    import torch

    there = torch.cuda.device_count()
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or request.nproc or there or 1
    if there and wanted > there and not request.gpu:
        raise UsageFailure(f"--nproc {wanted}: this machine has {there} GPUs")
    return wanted


def dry_run(request: Request) -> dict[str, Any]:
    """What `run` would do and cost, loading no weights; on stderr in words, and a conversation with its mask."""
    inputs = read(request, weights=False)
    corpus = inputs.corpus
    if not request.quiet:
        chosen = load_template(request.template, load_tokenizer(request.model))
        on, off = ("\x1b[1;32m", "\x1b[0m") if _colour() else ("⟦", "⟧")
        print(f"--- the first conversation ({chosen.name}); what is trained is marked", file=sys.stderr)
        print(data.marked(corpus, 0, chosen, on, off), file=sys.stderr)
        print("---", file=sys.stderr)
    from vtools.train import rank

    report = {
        **inputs.summary(),
        "trained_share": round(corpus.trained_tokens / corpus.tokens, 4),
        "longest": max(corpus.lengths),
        "tokens_per_step": round(corpus.tokens / len(corpus) * min(request.batch, len(corpus))),
        "eval_conversations": len(inputs.held_out) if inputs.held_out else 0,
        "template": inputs.template_name,
        **rank.foreseen(request, inputs),
    }
    if not request.quiet:
        print(_in_words(report, request), file=sys.stderr)
    return report


def _in_words(report: dict[str, Any], request: Request) -> str:
    """The dry run's report for people."""
    from datetime import timedelta

    hours = "unknown" if report["seconds"] is None else str(timedelta(seconds=round(report["seconds"])))
    price = "unknown" if report["usd"] is None else f"${report['usd']:,.2f}"
    if request.price is None:
        price += " (give --price USD, an hour and device)" if report["usd"] is None else ""
    fits = "" if report["problem"] is None else f"\n  BUT {report['problem']}"
    memory = report["memory_gb"]
    return (
        f"vtools train: {report['conversations']} conversations, {report['data_tokens']:,} tokens, "
        f"{100 * report['trained_share']:.0f} % trained, {report['truncated']} cut, {report['rejected']} rejected\n"
        f"  {report['steps']} steps of {report['tokens_per_step']:,} tokens on {report['ranks']} x {report['device']}\n"
        f"  memory of each: {memory.get('total', '?')} GB of {memory.get('available', '?')} "
        f"(micro-batches of {report['micro_tokens']} tokens, recompute {report['recompute']})\n"
        f"  {report['flops']:.3g} operations, about {hours} at {100 * report['assumed_mfu']:.0f} % of the peak, "
        f"cost {price}{fits}"
    )


def run(request: Request, out: Path) -> None:
    """Train and save; `out` is locked by the caller. Raises Failure, TryAgain."""
    if out.resolve() == model_folder(request.model).resolve():
        raise UsageFailure(f"--out {out}: that is the base model; choose another folder")
    inputs = read(request)
    from vtools.train import launch, rank

    launch.run(rank.Job(request, inputs, out))


def _sizes(folder: Path) -> tuple[int | None, int | None]:
    """The model's vocabulary and its number of positions, from config.json alone."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise Failure(f"{folder}: no config.json that can be read") from None
    config = config.get("text_config") or config
    return config.get("vocab_size"), config.get("max_position_embeddings")


def _colour() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")
