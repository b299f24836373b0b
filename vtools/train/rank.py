# ruff: noqa: TID253
"""One rank of a training run, from the token cache to the saved model."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vtools import machine
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure
from vtools.records import jsonl
from vtools.train import attention, checkpoint, device, loop, lora, pack, run_identity, sample, save, shard
from vtools.train import memory as estimate
from vtools.train.job import Inputs, Request
from vtools.train.ranks import Ranks


@dataclass(frozen=True)
class Job:
    """What every rank is told."""

    request: Request
    inputs: Inputs
    out: Path


def work(job: Job, ranks: Ranks, alone: bool) -> None:
    """Train and save. `alone`: no launcher stands between this process and the user's signals.

    Raises Failure, TryAgain, Interrupted: on all ranks, where the reason is not one rank's own.
    """
    request, inputs, out = job.request, job.inputs, job.out
    first = ranks.rank == 0
    device.prepare(ranks.device)
    dtype = device.compute_dtype(request.dtype, ranks.device)
    identity = run_identity.identity(request, inputs, str(dtype).removeprefix("torch."))
    found = _earlier(job, identity, ranks)
    if found == "finished":
        if first:
            if request.keep is None:
                shutil.rmtree(out / "checkpoints", ignore_errors=True)  # the run was killed just after its last file
            _say(request, f"{out}: this run is finished; nothing to do")
        return
    network, chosen, shape = _built(job, ranks, dtype, found[1] if isinstance(found, tuple) else None)
    recipe = loop.Recipe(
        steps=inputs.steps,
        batch=request.batch,
        micro_tokens=chosen.micro_tokens,
        lr=request.lr,
        warmup=inputs.warmup,
        schedule=request.schedule,
        seed=request.seed,
        dtype=dtype,
        eval_every=request.eval_every,
    )
    plan = {name: getattr(chosen, name) for name in PLAN}
    saving = loop.Saving(
        out,
        *request.save_every,
        keep=request.keep or 2,
        note={"run": identity, "ranks": ranks.size, "plan": plan},
        aside=_room_for_a_copy(shape, inputs, ranks),
        last=request.keep is not None,
    )
    trainer = loop.Trainer(network, inputs.corpus, inputs.held_out, recipe, saving, ranks, alone)
    if chosen.compiled:
        trainer.warm_up()
    if first:
        _clear(request, out, found[1]["step"] if isinstance(found, tuple) else 0)
    ranks.wait()
    if isinstance(found, tuple):
        trainer.restore(*found)
    resumed = trainer.result.step
    text = load_template(request.template, load_tokenizer(request.model))
    peak = machine.peak_flops(torch.cuda.get_device_name()) if ranks.device.type == "cuda" else None

    def share(lengths: Sequence[int]) -> float:
        flops = estimate.flops(shape, sum(lengths), sum(length * length for length in lengths))
        return flops / ((peak or 1) * ranks.size)

    def samples() -> list[dict[str, str]]:
        assert inputs.held_out is not None
        with device.uncompiled():
            return sample.answers(network, sample.prompts(inputs.held_out, request.samples), text, ranks)

    with jsonl.output(None if first else "/dev/null") as output:
        write: Callable[[dict[str, Any]], None] = output.write
        write({"step": resumed, **inputs.summary()})
        with jsonl.progress("train", request.quiet or not first, inputs.steps, " steps") as tick:
            result = trainer.run(write, tick, samples if request.samples else None, share if peak else None)
    save.export(network, text, out, request.save_dtype, run_identity.describe(request, inputs, identity, result), ranks)
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
) -> tuple[PreTrainedModel, estimate.Plan, estimate.Shape]:
    """The model with its weights, cut over the ranks and checked, and how it is computed; `note` is a checkpoint's."""
    request, inputs = job.request, job.inputs
    kernel = attention.choose(request.attention, ranks.device.type)
    network = _empty(request, inputs, dtype, kernel)
    shape = estimate.shape(network)
    available = -ranks.largest(-machine.available_memory(ranks.device, inputs.nproc))[0]  # of the smallest
    quick = attention.has_kernel(ranks.device, dtype) and not getattr(network.config, "attention_dropout", 0)
    chosen = planned(request, inputs, network, shape, dtype, ranks.size, ranks.device.type, available, quick)
    if note and note["ranks"] == ranks.size:  # free memory varies, and the same bits need the same cuts
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
        _say(
            request,
            f"{ranks.size} x {ranks.device.type}, {str(dtype).removeprefix('torch.')}, recompute {chosen.recompute}, "
            f"micro-batches of {chosen.micro_tokens} tokens{', compiled' * chosen.compiled}; "
            f"packed differs from single by {gap:.1g}",
        )
    return network, chosen, shape


PLAN = ("recompute", "micro_tokens", "compiled")  # by the same names in Plan and in Request


def _empty(request: Request, inputs: Inputs, dtype: torch.dtype, kernel: str) -> PreTrainedModel:
    """The model that is trained, adapters and all, before it has weights; frozen ones need no fp32."""
    network = shard.empty(inputs.folder, inputs.rope, dtype if request.lora else torch.float32, kernel)
    if request.lora:
        lora.inject(network, request.lora)
    return network


def _room_for_a_copy(shape: estimate.Shape, inputs: Inputs, ranks: Ranks) -> bool:
    """Whether every host can hold what is trained, 12 bytes a parameter, while it is written beside the training."""
    copies = 12 * shape.trainable / ranks.size * inputs.nproc
    (short,) = ranks.largest(2 * copies > machine.available_memory(torch.device("cpu")))
    return not short


def planned(
    request: Request,
    inputs: Inputs,
    network: PreTrainedModel,
    shape: estimate.Shape,
    dtype: torch.dtype,
    size: int,
    device_type: str,
    available: int,
    quick: bool = True,
) -> estimate.Plan:
    """How micro-batches are computed on `size` ranks; `quick`: attention has a kernel, so that layers can be compiled.

    Raises Failure where memory does not suffice.
    """
    longest = max(max(corpus.lengths) for corpus in (inputs.corpus, inputs.held_out) if corpus is not None)

    def prepare(layers: PreTrainedModel, recompute: estimate.Recompute) -> None:
        if request.lora:
            lora.inject(layers, request.lora)
        shard.recompute_layers(layers, recompute)

    return estimate.choose(
        shape,
        network.config,
        size,
        longest,
        dtype,
        device_type,
        available,
        None if request.recompute == "auto" else request.recompute,  # type: ignore[arg-type]
        request.micro_tokens,
        request.compiled if quick else request.compiled or False,
        prepare,
    )


def foreseen(request: Request, inputs: Inputs) -> dict[str, Any]:
    """What a run needs and costs, for the dry run: on this machine, or on the GPU that --gpu names."""
    here = torch.device("cuda" if torch.cuda.is_available() and not request.gpu else "cpu")
    kind = "cuda" if request.gpu else here.type
    dtype = torch.bfloat16 if request.gpu and request.dtype == "auto" else device.compute_dtype(request.dtype, here)
    network = _empty(request, inputs, dtype, attention.NAME)
    shape = estimate.shape(network)
    size = inputs.nproc * request.nodes
    if request.gpu:
        known, available = machine.gpu(request.gpu)
        speed: tuple[float | None, float] = None if dtype == torch.float32 else known, machine.ASSUMED_MFU
    else:
        speed, available = machine.speed(here, dtype), machine.available_memory(here, inputs.nproc)
    problem, chosen = None, None
    try:
        chosen = planned(request, inputs, network, shape, dtype, size, kind, available)
    except Failure as failure:
        problem = str(failure)
    lengths = inputs.corpus.lengths
    share = inputs.steps * request.batch / len(lengths) if request.max_steps else request.epochs
    operations = share * estimate.flops(shape, inputs.corpus.tokens, sum(length * length for length in lengths))
    devices = size if kind == "cuda" else request.nodes
    memory = {name: round(value / 1e9, 2) for name, value in vars(chosen.memory).items()} if chosen else {}
    return {
        "parameters": shape.parameters,
        "trainable": shape.trainable,
        "ranks": size,
        "device": request.gpu or (torch.cuda.get_device_name() if kind == "cuda" else "cpu"),
        "dtype": str(dtype).removeprefix("torch."),
        "recompute": chosen.recompute if chosen else None,
        "micro_tokens": chosen.micro_tokens if chosen else None,
        "memory_gb": memory,
        "problem": problem,
        **estimate.expected(operations, *speed, devices, request.price),
    }


def _earlier(job: Job, identity: dict[str, Any], ranks: Ranks) -> tuple[Path, dict[str, Any]] | str | None:
    """The checkpoint to go on from, or "finished"; None to start. Rank 0 looks, all go by what it sees.

    Raises Failure where the folder holds something else, or where the ranks were given different runs.
    """
    out, folder = job.out, job.out / "checkpoints"
    others = [other for other in ranks.gathered(identity) if other != identity]
    if others:
        raise Failure(
            f"the machines were not given the same run: {'; '.join(run_identity.differences(others[0], identity))}"
        )
    found: tuple[Path, dict[str, Any]] | str | Failure | None = None
    if ranks.rank == 0:
        try:
            if not folder.exists() and (out / "config.json").exists() and not (out / run_identity.FILE).exists():
                raise Failure(f"{out}: holds a model that `vtools train` did not make; choose another --out")
            if job.request.resume:
                found = "finished" if run_identity.finished(out, identity) else checkpoint.latest(folder)
            if isinstance(found, tuple):
                run_identity.refuse_differences(out, found[1]["run"], identity)
        except Failure as failure:
            found = failure
    found = ranks.gathered(found)[0]
    if isinstance(found, Failure):
        raise found
    if isinstance(found, tuple) and not found[0].exists():
        raise Failure(f"{folder}: not the folder that rank 0 reads; all machines must share --out")
    return found


def _clear(request: Request, out: Path, step: int) -> None:
    """Make the folder ready: without what a killed run left half written, or without any earlier run."""
    folder = out / "checkpoints"
    if not request.resume:
        shutil.rmtree(folder, ignore_errors=True)
        (out / run_identity.FILE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.clear(folder, step)


def _say(request: Request, text: str) -> None:
    if not request.quiet:
        print(f"vtools train: {text}", file=sys.stderr)
