# ruff: noqa: TID253
"""One rank of a training run, from the token cache to the saved model."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vtools import machine, options, provenance
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure, say
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
)  # fmt: skip
from vtools.train.ranks import Ranks
from vtools.train.request import Inputs, Job, Request


def work(job: Job, ranks: Ranks, alone: bool) -> None:
    """Train and save. `alone`: there is no launcher between this process and the user's signals.

    Raises Failure, TryAgain, Interrupted; on all ranks, unless the reason is one rank's own.
    """
    request, inputs, out = job.request, job.inputs, job.out
    first = ranks.rank == 0
    device.prepare(ranks.device)
    dtype = device.compute_dtype(request.dtype, ranks.device)
    identity = run_identity.identity(request, inputs, device.NAMES[dtype])
    finished, found = _earlier(job, identity, ranks)
    if finished:
        if first:
            if request.keep is None:
                shutil.rmtree(out / "checkpoints", ignore_errors=True)  # the run was killed right after its last file
            _say(request, f"{out}: this run is finished; nothing to do")
        return
    network, chosen, shape = _built(job, ranks, dtype, found[1] if found else None)
    plan = {name: getattr(chosen, name) for name in PLAN}
    decided = {**vars(request), **plan, "steps": inputs.steps, "warmup": inputs.warmup, "dtype": dtype}
    recipe = options.fields_from(loop.Recipe, decided)
    saving = loop.Saving(
        out,
        request.save_every,
        keep=request.keep or 2,
        note={"run": identity, "ranks": ranks.size, "plan": plan},
        aside=_can_hold_a_copy(shape, inputs, ranks),
        last=request.keep is not None,
    )
    trainer = loop.Trainer(network, inputs.corpus, inputs.held_out, recipe, saving, ranks, alone)
    if chosen.compiled:
        trainer.warm_up()
    if first:
        _clear(request, out, found[1]["step"] if found else 0)
    ranks.wait()
    if found:
        trainer.restore(*found)
    resumed = trainer.result.step
    text = load_template(request.template, load_tokenizer(request.model), request.system)
    peak = machine.peak_flops(torch.cuda.get_device_name()) if ranks.device.type == "cuda" else None

    def share(lengths: Sequence[int]) -> float:
        operations = flops.operations(shape, sum(lengths), sum(length * length for length in lengths))
        return operations / ((peak or 1) * ranks.size)

    def samples() -> list[dict[str, str]]:
        assert inputs.held_out is not None
        with device.uncompiled():
            return sample.answers(network, sample.prompts(inputs.held_out, request.samples), text, ranks)

    with jsonl.output(None if first else "/dev/null") as output:
        output.write({"step": resumed, **inputs.summary()})
        with jsonl.progress("train", request.quiet or not first, inputs.steps, " steps") as tick:
            result = trainer.run(output.write, tick, samples if request.samples else None, share if peak else None)
    save.export(network, text, out, request.save_dtype, card.describe(request, inputs, identity, result), ranks)
    if first:
        if request.keep is None:
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
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
    quick = attention.has_kernel(ranks.device, dtype) and not getattr(network.config, "attention_dropout", 0)
    compiled = request.compiled if quick else request.compiled or False
    where = (ranks.size, inputs.longest, dtype, ranks.device.type, available)
    chosen = memory.choose(network, *where, request.recompute, request.micro_tokens, compiled)
    if note and note["ranks"] == ranks.size:  # free memory varies, but the same bits need the same micro-batches
        before = {name: note["plan"][name] for name in PLAN if getattr(request, name) in (None, "auto")}
        chosen = dataclasses.replace(chosen, **before)
    shard.shard(network, ranks.mesh, dtype, chosen.recompute, chosen.compiled)
    base = shard.Weights(inputs.folder)

    def read(name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        made = lora.initial(name, shape, request.seed)
        return base.read(lora.base_name(name), shape, start, stop) if made is None else made[start:stop]

    shard.fill(network, read, ranks.device)
    corpus = inputs.corpus
    probe = [list(corpus.conversation(place % len(corpus))[0][:length]) for place, length in enumerate((32, 24, 16))]
    with device.uncompiled():
        gap = pack.self_check(network, probe, dtype, ranks.device)
    shard.reshard(network)
    if request.verbose and ranks.rank == 0:
        micro = f"micro-batches of {chosen.micro_tokens} tokens{', compiled' * chosen.compiled}"
        computed = f"{ranks.size} x {ranks.device.type}, {device.NAMES[dtype]}, recompute {chosen.recompute}, {micro}"
        _say(request, f"{computed}; packed differs from single by {gap:.1g}")
    return network, chosen, shape


PLAN = ("recompute", "micro_tokens", "compiled")  # same names in Plan and in Request


def empty(request: Request, inputs: Inputs, dtype: torch.dtype, kernel: str) -> PreTrainedModel:
    """The model to train, with adapters, before loading weights; frozen weights need no fp32."""
    network = shard.empty(inputs.folder, inputs.rope, dtype if request.lora else torch.float32, kernel)
    if request.lora:
        lora.inject(network, request.lora)
    return network


def _can_hold_a_copy(shape: flops.Shape, inputs: Inputs, ranks: Ranks) -> bool:
    """Whether every host has memory for a copy to save in the background: 12 bytes per trained parameter."""
    copies = 12 * shape.trainable / ranks.size * inputs.nproc
    (short,) = ranks.largest(2 * copies > machine.available_memory(torch.device("cpu")))
    return not short


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
                run_identity.refuse_differences(out, found[1]["run"], identity)
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
