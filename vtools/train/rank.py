# ruff: noqa: TID253
"""One rank of a training run, from the token cache to the saved model."""

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vtools import machine, options, provenance
from vtools.process import Failure, Interrupted, say
from vtools.records import jsonl
from vtools.train import (
    attention,
    card,
    checkpoint,
    device,
    flops,
    loop,
    lora,
    memory,
    pack,
    run_identity,
    sample,
    save,
    shard,
    shrinking,
)  # fmt: skip
from vtools.train.progress import Progress
from vtools.train.ranks import Ranks
from vtools.train.request import Inputs, Job, Request

WORTH_SAYING = 1_000_000_000  # bytes


def work(job: Job, ranks: Ranks, alone: bool) -> None:
    """Train and save. `alone`: there is no launcher between this process and the user's signals.

    Raises Failure, TryAgain, Interrupted; on all ranks, unless the reason is one rank's own.
    """
    first = ranks.rank == 0
    with (
        jsonl.output(None if first else "/dev/null") as output,
        Progress(job.request.quiet or not first, job.inputs.steps) as progress,
    ):
        _work(job, ranks, alone, output, progress)


def _work(job: Job, ranks: Ranks, alone: bool, output: jsonl.Output, progress: Progress) -> None:
    request, inputs, out = job.request, job.inputs, job.out
    first = ranks.rank == 0
    device.prepare(ranks.device)
    dtype = device.compute_dtype(request.dtype, ranks.device)
    identity = run_identity.identity(request, inputs, device.NAMES[dtype])
    finished, found = _earlier(job, identity, ranks)
    if finished:
        if first:
            _tidy(request, out)  # the run was killed right after its last file
            _say(request, f"{out}: this run is finished; nothing to do")
        return
    with progress.phase(f"loading {request.model}"):
        network, chosen, shape = _built(job, ranks, dtype, found[1] if found else None)
    plan = {name: getattr(chosen, name) for name in shrinking.DECIDED}
    decided = {**vars(request), **plan, "steps": inputs.steps, "warmup": inputs.warmup, "dtype": dtype}
    recipe = options.fields_from(loop.Recipe, decided)
    saving = loop.Saving(
        out,
        request.save_every,
        keep=request.keep or 2,
        note={"run": identity, "ranks": ranks.size, "plan": plan},
        aside=_can_hold_a_copy(request, shape, inputs, ranks),
        last=request.keep is not None,
    )
    trainer = loop.Trainer(network, inputs.corpus, inputs.held_out, recipe, saving, ranks, alone)
    with progress.phase("compiling and warming up"), _shrinking(job, ranks, network, plan, trainer):
        if chosen.compiled or ranks.device.type == "cuda":
            trainer.warm_up()
    if first:
        _clear(request, out, found[1]["step"] if found else 0)
    ranks.wait()
    if found:
        with progress.phase("reading the checkpoint"):
            trainer.restore(*found)
    resumed = trainer.result.step
    text = request.chat_template
    peak = machine.peak_flops(torch.cuda.get_device_name()) if ranks.device.type == "cuda" else None

    def share(lengths: Sequence[int]) -> float:
        operations = flops.operations(shape, sum(lengths), sum(length * length for length in lengths))
        return operations / ((peak or 1) * ranks.size)

    def samples() -> list[dict[str, str]]:
        assert inputs.held_out is not None
        with device.uncompiled():
            return sample.answers(network, sample.prompts(inputs.held_out, request.samples), text, ranks)

    def write(metrics: dict[str, Any]) -> None:
        output.write(metrics)
        progress.step(metrics)

    write({"step": resumed, **inputs.summary()})
    try:
        with _shrinking(job, ranks, network, plan, trainer):
            ask = samples if request.samples else None
            result = trainer.run(write, progress.phase, ask, share if peak else None)
    except Interrupted:
        if first and trainer.saved_step == trainer.result.step > 0:
            say("train", f"saved at step {trainer.saved_step} of {inputs.steps}; repeat the command to resume")
        raise
    with progress.phase(f"saving {out}"):
        save.export(network, text, out, request.save_dtype, card.describe(request, inputs, identity, result), ranks)
    if first:
        _tidy(request, out)
        after = f" (resumed at {resumed})" if resumed else ""
        held = [f"{loss:.4f}" for _, loss in sorted(result.held_out.items())]
        ends = f", held-out loss {held[0]} to {held[-1]}" if held else ""
        _say(request, f"{result.step} steps{after}, loss {result.loss:.4f}{ends}; saved {out}")
    ranks.wait()


def _built(
    job: Job, ranks: Ranks, dtype: torch.dtype, note: dict[str, Any] | None
) -> tuple[PreTrainedModel, memory.Plan, flops.Shape]:
    """The model, sharded over the ranks, loaded and checked, and its plan; `note` is that of a checkpoint."""
    request, inputs = job.request, job.inputs
    network = empty(request, inputs, dtype, attention.choose(request.attention, ranks.device.type))
    shape = flops.shape_of(network)
    available = -ranks.largest(-machine.available_memory(ranks.device, inputs.nproc))[0]  # the smallest over all ranks
    if ranks.device.type == "cuda":
        total = torch.cuda.get_device_properties(ranks.device).total_memory
        (taken,) = ranks.largest(total - machine.available_memory(ranks.device))
        if ranks.rank == 0 and taken > memory.RUNTIME_BYTES["cuda"] + WORTH_SAYING:
            _say(request, f"other processes hold up to {taken / 1e9:.1f} GB of a GPU's {total / 1e9:.1f} GB")
    text = network.config.get_text_config()
    quick = attention.has_kernel(ranks.device, dtype, attention.head_size(text))
    quick = quick and not getattr(text, "attention_dropout", 0)
    compiled = request.compiled if quick else request.compiled or False
    chosen = _choice(job, ranks, network, dtype)(available, request.recompute, request.micro_tokens, compiled)
    # Free memory varies, but the same bits need the same micro-batches.
    (before, *_) = ranks.gathered(shrinking.noted(job.out, ranks.size))
    if not before and note and note["ranks"] == ranks.size:
        before = note["plan"]
    if before:
        open_ones = (name for name in shrinking.DECIDED if getattr(request, name) in (None, "auto"))
        chosen = dataclasses.replace(chosen, **{name: before[name] for name in open_ones})
    shard.shard(network, ranks.mesh, dtype, chosen.recompute, chosen.compiled)
    base = shard.Weights(inputs.folder, {"--dtype": dtype, "--save-dtype": device.DTYPES[request.save_dtype]})

    def read(name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        made = lora.initial(name, shape, request.seed)
        return base.read(lora.base_name(name), shape, start, stop) if made is None else made[start:stop]

    shard.fill(network, read, ranks.device)
    corpus = inputs.corpus
    probe = [list(corpus.conversation(place % len(corpus))[0][:length]) for place, length in enumerate((32, 24, 16))]
    ranks.wait()  # for the slowest to load: GPUs wait for each other for minutes only
    with device.uncompiled():
        gap = pack.self_check(network, probe, dtype, ranks.device)
    shard.reshard(network)
    if request.verbose and ranks.rank == 0:
        micro = f"micro-batches of {chosen.micro_tokens} tokens{', compiled' * chosen.compiled}"
        computed = f"{ranks.size} x {ranks.device.type}, {device.NAMES[dtype]}, recompute {chosen.recompute}, {micro}"
        _say(request, f"{computed}; packed differs from single by {gap:.1g}")
    return network, chosen, shape


def _choice(job: Job, ranks: Ranks, network: PreTrainedModel, dtype: torch.dtype) -> Callable[..., memory.Plan]:
    """memory.choose for this run."""
    where = (ranks.size, job.inputs.longest, dtype, ranks.device.type)
    return functools.partial(memory.choose, network, *where, documents=job.request.batch)


@contextlib.contextmanager
def _shrinking(
    job: Job, ranks: Ranks, network: PreTrainedModel, plan: dict[str, Any], trainer: loop.Trainer
) -> Iterator[None]:
    """Raise Shrunk if memory runs out before the end of this process's first step; later, the error itself."""
    first = trainer.result.step
    try:
        yield
    except torch.OutOfMemoryError:
        if trainer.result.step > first:
            raise
        smaller = shrinking.smaller(plan, _choice(job, ranks, network, trainer.recipe.dtype), job.request)
        raise shrinking.shrink(job.out, ranks.size, plan, smaller) from None


def _tidy(request: Request, out: Path) -> None:
    """Remove what only an unfinished run needs."""
    if request.keep is None:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    (out / shrinking.FILE).unlink(missing_ok=True)


def empty(request: Request, inputs: Inputs, dtype: torch.dtype, kernel: str) -> PreTrainedModel:
    """The model to train, with adapters, before loading weights; frozen weights need no fp32."""
    network = shard.empty(inputs.folder, inputs.rope, dtype if request.lora else torch.float32, kernel)
    if adapters := lora.asked(request):
        lora.inject(network, adapters)
    return network


def _can_hold_a_copy(request: Request, shape: flops.Shape, inputs: Inputs, ranks: Ranks) -> bool:
    """Whether a copy to save in the background takes at most half of the free memory of every host."""
    copies = checkpoint.BYTES * shape.trainable * inputs.nproc // ranks.size
    free = -ranks.largest(-machine.available_memory(torch.device("cpu")))[0]
    there = 2 * copies <= free
    if ranks.rank == 0 and copies > WORTH_SAYING:
        size = f"{copies / 1e9:.1f} GB of each machine's memory"
        _say(
            request,
            f"checkpoints are written while training goes on, from a copy in {size}"
            if there
            else f"training waits for checkpoints: a copy to write from would take {size}, of which {free / 1e9:.1f} GB"
            " are free, and may take half of them",
        )
    return there


def _earlier(job: Job, identity: dict[str, Any], ranks: Ranks) -> tuple[bool, tuple[Path, dict[str, Any]] | None]:
    """Whether the run is finished, and the checkpoint to resume from, if any, as seen by rank 0.

    Raises Failure if the folder contains something else, or if the ranks were given different runs.
    """
    out, folder = job.out, job.out / "checkpoints"
    others = [other for other in ranks.gathered(identity) if other != identity]
    if others:
        differ = "; ".join(run_identity.differences(others[0], identity))
        raise Failure(f"the machines were given different runs: {differ}")
    finished, found, failure = False, None, None
    if ranks.rank == 0:
        try:
            if not folder.exists() and (out / "config.json").exists() and not (out / provenance.FILE).exists():
                raise Failure(f"{out}: contains a model not made by `vtools train`; choose another --out")
            if job.request.resume == "auto":
                finished = run_identity.finished(out, identity)
                found = None if finished else checkpoint.latest(folder)
            if found:
                run_identity.refuse_other_checkpoint(out, found[1]["run"], identity)
        except Failure as stopped:
            failure = stopped
    finished, found, failure = ranks.gathered((finished, found, failure))[0]
    if failure:
        raise failure
    if found and not found[0].exists():
        raise Failure(f"{folder}: not the folder that rank 0 reads; --out must be shared by all machines")
    return finished, found


def _clear(request: Request, out: Path, step: int) -> None:
    """Remove what a killed run left half written, or all of an earlier run, from the folder."""
    folder = out / "checkpoints"
    if request.resume == "never":
        shutil.rmtree(folder, ignore_errors=True)
        (out / provenance.FILE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.clear(folder, step)


def _say(request: Request, text: str) -> None:
    if not request.quiet:
        say("train", f"{text}")
