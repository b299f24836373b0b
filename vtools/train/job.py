"""A training job from its command line to its ranks: reading input, checking it, starting."""

import json
import math
import os
from pathlib import Path

from vtools.models.reference import model_folder
from vtools.models.template import load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure, UsageFailure, say
from vtools.train import schedule, token_cache
from vtools.train.request import Inputs, Job, Request

DEFAULT_MAX_TOKENS = 2048


def read(request: Request, weights: bool = True) -> Inputs:
    """Read and tokenise all input. Raises Failure if nothing could be learned from it.

    Without `weights`, those of a hub model are not downloaded.
    """
    tokenizer = load_tokenizer(request.model)
    chosen = load_template(request.template, tokenizer, request.system)
    chosen.check_ends()
    vocabulary, limit = _sizes(tokenizer.folder)
    max_tokens = request.max_tokens or min(DEFAULT_MAX_TOKENS, limit or DEFAULT_MAX_TOKENS)
    rope = None
    if limit and max_tokens > limit:
        if not request.rope_scaling:
            raise UsageFailure(
                f"--max-tokens {max_tokens}: {request.model} supports {limit} positions; "
                f"add --rope-scaling linear to extend them, as Vicuna 16k did"
            )
        rope = {"rope_type": request.rope_scaling, "factor": float(math.ceil(max_tokens / limit))}
    first = os.environ.get("RANK", "0") == "0"  # under torchrun every rank gets here, and finds the work of the first
    if "RANK" in os.environ:
        for name, file in (("--data", request.data), ("--eval", request.evaluation)):
            if file == "-":
                raise UsageFailure(f"under torchrun every rank reads the data: give {name} FILE, not stdin")
    quiet = request.quiet or not first
    held_out = None
    if request.evaluation:
        held_out = token_cache.read(
            request.evaluation, chosen, max_tokens, request.overlong,
            rejects=os.devnull if request.rejects else None, jobs=request.jobs, quiet=True,
        )  # fmt: skip
        if held_out.rejected and not quiet:
            say("train", f"--eval: {held_out.line()}")
    rejects = request.rejects if first or not request.rejects else os.devnull
    corpus = token_cache.read(
        request.data, chosen, max_tokens, request.overlong, rejects=rejects, jobs=request.jobs, quiet=quiet
    )
    largest = max(corpus.largest, held_out.largest if held_out else 0)
    if vocabulary and largest >= vocabulary:
        raise Failure(
            f"{request.model}: the tokenizer produces token {largest}, but the model has only {vocabulary} rows; "
            f"use the model's own tokenizer, or a template without added tokens"
        )
    steps = schedule.number_of_steps(len(corpus), request.batch, request.epochs, request.max_steps)
    warmup = schedule.warmup_steps(request.warmup, steps)
    if steps == 1 and warmup:
        raise Failure(
            f"the whole run is one warm-up step at rate 0 ({len(corpus)} conversations, --batch {request.batch}): "
            f"nothing would be learned; lower --batch, raise --epochs, or give --warmup 0"
        )
    folder = model_folder(request.model) if weights else tokenizer.folder
    return Inputs(
        folder, chosen.name, chosen.source, corpus, held_out, max_tokens, rope, steps, warmup, _ranks_here(request)
    )


def _ranks_here(request: Request) -> int:
    """Ranks on this node: from torchrun or --nproc, else one per GPU, else one."""
    import torch

    there = torch.cuda.device_count()
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or request.nproc or there or 1
    if there and wanted > there and not request.gpu:
        raise UsageFailure(f"--nproc {wanted}: this machine has {there} GPUs")
    return wanted


def run(request: Request, out: Path) -> None:
    """Train and save; `out` is locked by the caller. Raises Failure, TryAgain."""
    if out.resolve() == model_folder(request.model).resolve():
        raise UsageFailure(f"--out {out}: is the base model; choose another folder")
    inputs = read(request)
    from vtools.train import launch  # torch is imported after the tokenising pool was forked

    launch.run(Job(request, inputs, out))


def _sizes(folder: Path) -> tuple[int | None, int | None]:
    """The model's vocabulary and its number of positions, from config.json alone."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise Failure(f"{folder}: no readable config.json") from None
    config = config.get("text_config") or config
    return config.get("vocab_size"), config.get("max_position_embeddings")
