"""--dry-run: what a run would do, need and cost, without loading weights. GB are 10^9 bytes."""

import os
import sys
from datetime import timedelta
from typing import Any

from vtools.process import Failure
from vtools.records import prices
from vtools.train import data, job
from vtools.train.request import Inputs, Request


def foreseen(request: Request) -> dict[str, Any]:
    """Counts, memory and cost of a run; also prints them on stderr, with one conversation and its loss mask."""
    price = prices.read(request.prices).gpu_hour(request.gpu or "here") if request.prices else None
    inputs = job.read(request, weights=False)
    corpus = inputs.corpus
    chosen = request.chat_template
    from vtools.train import preflight  # torch, after the tokenising pool was forked

    preflight.check(request, inputs, chosen)
    if not request.quiet:
        colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        on, off = ("\x1b[1;32m", "\x1b[0m") if colour else ("⟦", "⟧")
        print(f"--- the first conversation ({chosen.name}); what is trained is marked", file=sys.stderr)
        print(data.marked(corpus, 0, chosen, on, off), file=sys.stderr)
        print(f"--- system text where a conversation has none: {chosen.system or 'none'}", file=sys.stderr)
    report = {
        **inputs.summary(),
        "trained_share": round(corpus.trained_tokens / corpus.tokens, 4),
        "longest": max(corpus.lengths),
        "tokens_per_step": round(corpus.tokens / len(corpus) * min(request.batch, len(corpus))),
        **{name: getattr(request, name) for name in ("epochs", "batch", "lr")},
        "max_tokens": inputs.max_tokens,
        "eval_conversations": len(inputs.held_out) if inputs.held_out else 0,
        "template": inputs.template_name,
        "system": chosen.system,
        **_costs(request, inputs, price),
    }
    if not request.quiet:
        print(_in_words(report, request), file=sys.stderr)
    return report


def _costs(request: Request, inputs: Inputs, price: float | None) -> dict[str, Any]:
    """What a run needs and costs, on this machine or on the GPU that --gpu names."""
    import torch  # after the tokenising pool was forked

    from vtools import machine
    from vtools.train import attention, checkpoint, device, flops, memory, rank

    here = torch.device("cuda" if torch.cuda.is_available() and not request.gpu else "cpu")
    kind = "cuda" if request.gpu else here.type
    dtype = torch.bfloat16 if request.gpu and request.dtype == "auto" else device.compute_dtype(request.dtype, here)
    network = rank.empty(request, inputs, dtype, attention.NAME)
    shape = flops.shape_of(network)
    size = inputs.nproc * request.nnodes
    if request.gpu:
        known, available = machine.gpu(request.gpu)
        speed: tuple[float | None, float] = None if dtype == torch.float32 else known, machine.ASSUMED_MFU
    else:
        speed, available = machine.speed(here, dtype), machine.available_memory(here, inputs.nproc)
    problem, chosen = None, None
    try:
        where = (size, inputs.longest, dtype, kind, available)
        wanted = (request.recompute, request.micro_tokens, request.compiled)
        chosen = memory.choose(network, *where, *wanted, request.batch)
    except Failure as failure:
        problem = str(failure)
    lengths = inputs.corpus.lengths
    share = inputs.steps * request.batch / len(lengths) if request.max_steps else request.epochs
    operations = share * flops.operations(shape, inputs.corpus.tokens, sum(length * length for length in lengths))
    gigabytes = {name: round(value / 1e9, 2) for name, value in vars(chosen.memory).items()} if chosen else {}
    return {
        "parameters": shape.parameters,
        "trainable": shape.trainable,
        "layers": shape.layers,
        "heads": shape.heads,
        "width": shape.hidden,
        "vocabulary": shape.vocabulary,
        "ranks": size,
        "device": request.gpu or (torch.cuda.get_device_name() if kind == "cuda" else "cpu"),
        "dtype": device.NAMES[dtype],
        "recompute": chosen.recompute if chosen else None,
        "micro_tokens": chosen.micro_tokens if chosen else None,
        "memory_gb": gigabytes,
        "checkpoint_gb": round(checkpoint.BYTES * shape.trainable / 1e9, 2),
        "checkpoint_copy_gb": round(checkpoint.BYTES * shape.trainable * inputs.nproc / size / 1e9, 2),
        "problem": problem,
        **expected(operations, *speed, size if kind == "cuda" else request.nnodes, price),
    }


def expected(
    operations: float, peak: float | None, assumed: float, devices: int = 1, price: float | None = None
) -> dict[str, float | None]:
    """Seconds and dollars (`price` per device-hour) for a number of FLOPs; None if unknown."""
    seconds = operations / (peak * assumed * devices) if peak else None
    usd = None if seconds is None or price is None else round(seconds / 3600 * price * devices, 2)
    return {
        "flops": operations,
        "seconds": None if seconds is None else round(seconds, 1),
        "usd": usd,
        "assumed_mfu": assumed,
    }


def _in_words(report: dict[str, Any], request: Request) -> str:
    """The dry run's report for people."""
    hours = "unknown" if report["seconds"] is None else str(timedelta(seconds=round(report["seconds"])))
    price = f"${report['usd']:,.2f}" if report["usd"] is not None else "unknown"
    price += "" if request.prices else " (give --prices FILE)"
    fits = "" if report["problem"] is None else f"\n  BUT {report['problem']}"
    memory = report["memory_gb"]
    return (
        f"vtools train: {report['conversations']} conversations, {report['data_tokens']:,} tokens, "
        f"{100 * report['trained_share']:.0f} % trained, {report['truncated']} cut, {report['rejected']} rejected\n"
        f"  {report['steps']} steps of {report['tokens_per_step']:,} tokens on {report['ranks']} x {report['device']}\n"
        f"  memory of each: {memory.get('total', '?')} GB of {memory.get('available', '?')} "
        f"(micro-batches of {report['micro_tokens']} tokens, recompute {report['recompute']})\n"
        f"  a checkpoint: {report['checkpoint_gb']} GB on disk, and while it is written a copy of "
        f"{report['checkpoint_copy_gb']} GB in each machine's memory (not of GPUs), if half of what is free will do\n"
        f"  {report['flops']:.3g} operations, about {hours} at {100 * report['assumed_mfu']:.0f} % of the peak, "
        f"cost {price}{fits}"
    )
