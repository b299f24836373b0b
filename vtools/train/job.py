"""A training job from its command line to its ranks: reading input, checking it, starting."""

import math
import os
from pathlib import Path
from typing import Any

from vtools.models.configs import context_limit, number, read_json, rope_settings
from vtools.models.reference import model_folder
from vtools.models.tokenizer import HUB_FILES
from vtools.process import Failure, UsageFailure, say
from vtools.records import expand
from vtools.train import schedule, token_cache
from vtools.train.progress import Progress
from vtools.train.request import Inputs, Job, Request

DEFAULT_MAX_TOKENS = 2048
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_FEW_STEPS = 20


def read(request: Request, weights: bool = True) -> Inputs:
    """Read and tokenise all input. Raises Failure if nothing could be learned from it.

    Without `weights`, those of a hub model are not downloaded.
    """
    config = _checked_config(request.model, model_folder(request.model, HUB_FILES))
    chosen = request.chat_template
    chosen.check()
    vocabulary, limit = number(config, "vocab_size"), context_limit(config)
    max_tokens = request.max_tokens or min(DEFAULT_MAX_TOKENS, limit or DEFAULT_MAX_TOKENS)
    rope = _scaling(request, config, limit, max_tokens) if limit and max_tokens > limit else None
    first = os.environ.get("RANK", "0") == "0"  # under torchrun every rank gets here, and finds the work of the first
    if "RANK" in os.environ:
        for name, given in (("FILE", request.data), ("--eval", [request.evaluation])):
            if "-" in given:
                raise UsageFailure(f"under torchrun every rank reads the data: name files for {name}, not stdin")
    quiet = request.quiet or not first
    if not quiet and (prompted := chosen.untrained_prompt):
        say(
            "train",
            f"the template ends a prompt with {prompted!r}, which no answer follows; the tuned model's leaves it out",
        )
    held_out = None
    if request.evaluation:
        held_out = token_cache.read(
            [request.evaluation], chosen, max_tokens, request.overlong,
            rejects=os.devnull if request.rejects else None, jobs=request.jobs, quiet=True,
        )  # fmt: skip
        if held_out.rejected and not quiet:
            say("train", f"--eval: {held_out.line()}")
    rejects = request.rejects if first or not request.rejects else os.devnull
    others = [rejects, request.evaluation, request.out and str(request.out)]
    files = expand.expanded("train", request.data, others=others, quiet=quiet)
    corpus = token_cache.read(
        files, chosen, max_tokens, request.overlong, rejects=rejects, jobs=request.jobs, quiet=quiet
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
    if not quiet:
        if request.rope_scaling and not rope:
            known = f"{request.model} supports {limit} positions" if limit else "the model states no limit"
            say("train", f"--rope-scaling {request.rope_scaling}: left out, since {known} (--max-tokens {max_tokens})")
        _say_small(request, len(corpus), steps)
        if corpus.truncated * 2 > len(corpus):
            say(
                "train",
                f"{corpus.truncated:,} of {len(corpus):,} conversations have over {max_tokens} tokens and were cut; "
                f"raise --max-tokens, or cut them between turns with `vtools split`",
            )
    folder = model_folder(request.model) if weights else chosen.tokenizer.folder
    return Inputs(
        folder, chosen.name, chosen.source, corpus, held_out, max_tokens, rope, steps, warmup, _ranks_here(request)
    )


def _scaling(request: Request, config: dict[str, Any], limit: int, max_tokens: int) -> dict[str, Any]:
    """How RoPE is scaled for rows that are longer than the model's limit. Raises UsageFailure if it cannot be."""
    asked = f"--max-tokens {max_tokens}: {request.model} supports {limit} positions"
    kind = rope_settings(config)["rope_type"]
    if kind != "default":
        raise UsageFailure(f"{asked}, and its RoPE is scaled already ({kind}); lower --max-tokens")
    if not request.rope_scaling:
        raise UsageFailure(f"{asked}; add --rope-scaling linear to extend them, as Vicuna 16k did")
    factor = max_tokens / limit
    if request.rope_scaling == "linear":
        factor = float(math.ceil(factor))  # as for Vicuna 16k; yarn's must be the ratio of the limits
    return {"rope_type": request.rope_scaling, "factor": factor, "max_position_embeddings": max_tokens}


def _ranks_here(request: Request) -> int:
    """Ranks on this node: from torchrun or --nproc, else one per GPU, else one."""
    import torch

    there = torch.cuda.device_count()
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or request.nproc or there or 1
    shown_one = "RANK" in os.environ and there == 1  # a scheduler shows each rank its own GPU
    if there and wanted > there and not request.gpu and not shown_one:
        raise UsageFailure(f"--nproc {wanted}: this machine has {there} GPUs")
    return wanted


def run(request: Request, out: Path) -> None:
    """Train and save; `out` is locked by the caller. Raises Failure, TryAgain."""
    if out.resolve() == model_folder(request.model).resolve():
        raise UsageFailure(f"--out {out}: is the base model; choose another folder")
    inputs = read(request)
    quiet = request.quiet or os.environ.get("RANK", "0") != "0"
    if not quiet:
        say("train", request.chat_template.described())
    with Progress(quiet) as progress, progress.phase("checking the run"):
        from vtools.train import launch, preflight  # torch is imported after the tokenising pool was forked

        preflight.check(request, inputs, request.chat_template)
    launch.run(Job(request, inputs, out))


def _checked_config(model: str, folder: Path) -> dict[str, Any]:
    """The configuration of a model's text part. Raises Failure for what cannot be trained here, before any work."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        raise Failure(f"{model}: an adapter (LoRA), not a model: merge it into {base} first, and train the result")
    whole = read_json(folder / "config.json")
    if not whole:
        raise Failure(f"{folder}: no readable config.json")
    config: dict[str, Any] = whole.get("text_config") or whole
    if not isinstance(config, dict):
        raise Failure(f"{folder}/config.json: text_config is {config!r}, not a JSON object; correct it")
    quantised = config.get("quantization_config") or whole.get("quantization_config")
    if isinstance(quantised, dict):
        method = quantised.get("quant_method") or "unknown method"
        raise Failure(f"{model}: its weights are quantised ({method}); train the model as published in bf16 or fp16")
    experts = next((config[key] for key in _EXPERTS if isinstance(config.get(key), int) and config[key] > 1), None)
    if experts:
        raise Failure(f"{model}: a mixture of {experts} experts; only dense models can be trained here")
    return config


def _say_small(request: Request, conversations: int, steps: int) -> None:
    """Warn of a run of few steps, and name a batch that suits."""
    if request.max_steps is not None or steps >= _FEW_STEPS or request.batch == 1:
        return
    batch = max(1, 2 ** int(math.log2(max(1, conversations * request.epochs / (2 * _FEW_STEPS)))))
    if batch < request.batch:
        better = schedule.number_of_steps(conversations, batch, request.epochs, None)
        say(
            "train",
            f"{conversations:,} conversations at --batch {request.batch} are only {steps} steps: "
            f"--batch {batch} would be {better}",
        )
