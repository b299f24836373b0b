"""A training job from its command line to the saved model: reading, refusing, resuming, reporting."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtools import filtering, jsonl, model, template
from vtools.process import Failure, UsageFailure
from vtools.train import data, plan, provenance
from vtools.train.data import Overlong

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
    max_tokens: int | None
    overlong: Overlong
    template: str | None
    evaluation: str | None
    eval_every: int
    save_every: tuple[int, float]
    keep: int | None
    resume: bool
    dtype: str
    save_dtype: str
    rejects: str | None
    jobs: int
    seed: int
    quiet: bool
    verbose: bool


@dataclass(frozen=True)
class Inputs:
    """What was read, before any weight is loaded."""

    template: template.Template
    corpus: data.Corpus
    counts: filtering.Rejects
    held_out: data.Corpus | None
    max_tokens: int
    steps: int
    warmup: int

    def summary(self) -> dict[str, Any]:
        """The counts, for the first line of the metrics and for the dry run."""
        return {
            "steps": self.steps,
            "warmup_steps": self.warmup,
            "conversations": len(self.corpus),
            "rejected": self.counts.rejected,
            "reasons": dict(sorted(self.counts.reasons.items())),
            "truncated": self.corpus.truncated,
            "data_tokens": self.corpus.tokens,
            "data_trained_tokens": self.corpus.trained_tokens,
        }


def read(request: Request) -> Inputs:
    """Read and tokenise all of the input. Raises Failure where nothing could be learned from it."""
    tokenizer = model.tokenizer(request.model)
    chosen = template.load(request.template, tokenizer)
    vocabulary, limit = _sizes(tokenizer.folder)
    max_tokens = request.max_tokens or min(DEFAULT_MAX_TOKENS, limit or DEFAULT_MAX_TOKENS)
    if limit and max_tokens > limit:
        raise UsageFailure(f"--max-tokens {max_tokens}: {request.model} was made for {limit} positions")
    held_out = None
    if request.evaluation:
        held_out, dropped = data.read(
            request.evaluation, chosen, max_tokens, request.overlong, jobs=request.jobs, quiet=True
        )
        if dropped.rejected and not request.quiet:
            print(dropped.line().replace("vtools train:", "vtools train: --eval:"), file=sys.stderr)
    corpus, counts = data.read(
        request.data,
        chosen,
        max_tokens,
        request.overlong,
        rejects=request.rejects,
        jobs=request.jobs,
        quiet=request.quiet,
    )
    largest = max(max(corpus.ids), max(held_out.ids) if held_out else 0)
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
    return Inputs(chosen, corpus, counts, held_out, max_tokens, steps, warmup)


def dry_run(request: Request) -> dict[str, Any]:
    """What `run` would do; one conversation goes to stderr with its trained tokens marked. Loads no weights."""
    inputs = read(request)
    corpus = inputs.corpus
    if not request.quiet:
        on, off = ("\x1b[1;32m", "\x1b[0m") if _colour() else ("⟦", "⟧")
        print(f"--- the first conversation ({inputs.template.name}); what is trained is marked", file=sys.stderr)
        print(data.marked(corpus, 0, inputs.template, on, off), file=sys.stderr)
        print("---", file=sys.stderr)
    return {
        **inputs.summary(),
        "trained_share": round(corpus.trained_tokens / corpus.tokens, 4),
        "longest": max(corpus.lengths),
        "tokens_per_step": round(corpus.tokens / len(corpus) * min(request.batch, len(corpus))),
        "eval_conversations": len(inputs.held_out) if inputs.held_out else 0,
        "template": inputs.template.name,
    }


def run(request: Request, out: Path, write: Callable[[dict[str, Any]], None]) -> None:
    """Train and save; `out` is locked by the caller. Raises Failure, TryAgain."""
    if out.resolve() == model.folder(request.model).resolve():
        raise UsageFailure(f"--out {out}: that is the base model; choose another folder")
    inputs = read(request)
    import torch

    from vtools.train import attention, checkpoint, export, loop, pack

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loop.prepare(device)
    dtype = loop.compute_dtype(request.dtype, device)
    identity = provenance.identity(request, inputs, str(dtype).removeprefix("torch."))
    folder = out / "checkpoints"
    if request.resume and provenance.finished(out, identity):
        if request.keep is None:
            shutil.rmtree(folder, ignore_errors=True)  # the run was killed just after its last file
        if not request.quiet:
            print(f"vtools train: {out}: this run is finished; nothing to do", file=sys.stderr)
        return
    found = checkpoint.latest(folder) if request.resume else None
    if found:
        provenance.refuse_differences(out, found[1]["run"], identity)
    elif not request.resume:
        shutil.rmtree(folder, ignore_errors=True)
        (out / provenance.FILE).unlink(missing_ok=True)
    if (
        not folder.exists()
        and (out / "config.json").exists()
        and not (out / provenance.FILE).exists()
        and request.resume
    ):
        raise Failure(f"{out}: holds a model that `vtools train` did not make; choose another --out")
    if folder.exists():
        checkpoint.discard_parts(folder)

    network = model.load(request.model, dtype="float32").to(device)  # type: ignore[arg-type]
    network.set_attn_implementation(attention.NAME)
    corpus = inputs.corpus
    probe = [list(corpus.conversation(place % len(corpus))[0][:length]) for place, length in enumerate((32, 24, 16))]
    # On the CPU the same attention serves every dtype, and fp32 shows the smallest fault.
    gap = pack.self_check(network, probe, torch.float32 if device.type == "cpu" else dtype)
    if request.verbose:
        gap_text = f"packed differs from single conversations by {gap:.1g}"
        print(f"vtools train: {device.type}, {identity['--dtype']}; {gap_text}", file=sys.stderr)
    recipe = loop.Recipe(
        steps=inputs.steps,
        batch=request.batch,
        micro_tokens=request.micro_tokens or loop.DEFAULT_MICRO_TOKENS[device.type],
        lr=request.lr,
        warmup=inputs.warmup,
        seed=request.seed,
        dtype=dtype,
        eval_every=request.eval_every,
    )
    saving = loop.Saving(out, *request.save_every, keep=request.keep or 2, note={"run": identity})
    resumed = found[1]["step"] if found else 0
    write({"step": resumed, **inputs.summary()})
    with jsonl.progress("train", request.quiet, inputs.steps, " steps") as tick:
        result = loop.run(network, corpus, inputs.held_out, recipe, saving, request.resume, write, tick)
    export.export(
        network, inputs.template, out, request.save_dtype, provenance.describe(request, inputs, identity, result)
    )
    if request.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    if not request.quiet:
        after = f" (resumed at {resumed})" if resumed else ""
        held = [f"{loss:.4f}" for _, loss in sorted(result.held_out.items())]
        ends = f", held-out loss {held[0]} to {held[-1]}" if held else ""
        print(f"vtools train: {result.step} steps{after}, loss {result.loss:.4f}{ends}; saved {out}", file=sys.stderr)


def _sizes(folder: Path) -> tuple[int | None, int | None]:
    """The model's vocabulary and its number of positions, from config.json alone."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise Failure(f"{folder}: no config.json that can be read") from None
    config = config.get("text_config") or config
    return config.get("vocab_size"), config.get("max_position_embeddings")


def _colour() -> bool:
    import os

    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")
