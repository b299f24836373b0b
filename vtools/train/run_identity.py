"""Which run a folder holds: refusing another run's checkpoints, and telling where weights came from."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vtools
from vtools.models.reference import hub_name
from vtools.process import Failure

if TYPE_CHECKING:
    from vtools.train.job import Inputs, Request
    from vtools.train.loop import Result

FILE = "vtools.json"


def identity(request: Request, inputs: Inputs, dtype: str) -> dict[str, Any]:
    """All that decides a run's weights, by the name a user knows it by.

    --micro-tokens, --recompute, --compile and the number of ranks are not here: they change the order of additions, not
    what is computed, and whoever runs out of memory or of GPUs must be able to go on.
    """
    source = hashlib.blake2b(inputs.template_source.encode(), digest_size=8).hexdigest()
    return {
        "--model": _base_digest(inputs.folder),
        "--template": f"{inputs.template_name} {source}",
        "data": inputs.corpus.digest(),
        "--eval": inputs.held_out.digest() if inputs.held_out is not None else None,
        "--eval-every": request.eval_every,
        "steps": inputs.steps,
        "--batch": request.batch,
        "--lr": request.lr,
        "--schedule": request.schedule,
        "warm-up steps": inputs.warmup,
        "--lora": request.lora,
        "rope scaling": inputs.rope,
        "--seed": request.seed,
        "--dtype": dtype,
        "--save-dtype": request.save_dtype,
    }


def finished(out: Path, now: dict[str, Any]) -> bool:
    """Whether `out` holds the finished result of this very run. Raises Failure if it holds that of another."""
    path = out / FILE
    if not path.exists():
        return False
    try:
        before = json.loads(path.read_text())["run"]
    except (ValueError, KeyError, TypeError):
        raise Failure(f"{path}: not written by `vtools train`; choose another --out") from None
    refuse_differences(out, before, now)
    return True


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two runs, in words."""
    return [f"{key} was {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key]]


def refuse_differences(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise Failure naming what differs between the run in `out` and this one."""
    found = differences(before, now)
    if found:
        raise Failure(
            f"{out}: holds another run: {'; '.join(found)}. "
            f"Repeat its command, choose another --out, or --resume never to start over"
        )


def describe(request: Request, inputs: Inputs, run: dict[str, Any], result: Result) -> dict[str, Any]:
    """What the weights were made from and with; the same run gives the same text, on any number of ranks."""
    import torch
    import transformers

    held = [loss for _, loss in sorted(result.held_out.items())]
    return {
        "tool": "train",
        "base": request.model,
        "template": inputs.template_name,
        "run": run,
        "data": {
            **inputs.summary(),
            "digest": run["data"],
            "sources": dict(sorted(inputs.corpus.sources.items())),
            "licenses": dict(sorted(inputs.corpus.licenses.items())),
        },
        "arguments": {
            "epochs": request.epochs,
            "max_steps": request.max_steps,
            "batch": request.batch,
            "lr": request.lr,
            "warmup": request.warmup,
            "schedule": request.schedule,
            "max_tokens": inputs.max_tokens,
            "overlong": request.overlong,
            "lora": request.lora,
            "dtype": run["--dtype"],
            "save_dtype": request.save_dtype,
            "seed": request.seed,
        },
        "versions": {
            "vtools": vtools.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "result": {
            "steps": result.step,
            "loss": result.loss,
            "eval_loss_before": held[0] if held else None,
            "eval_loss_after": held[-1] if held else None,
        },
    }


def card(about: dict[str, Any]) -> str:
    """The model card that hubs show, from what `describe` has found; only a hub's name is given as the base."""
    data, arguments, result = about["data"], about["arguments"], about["result"]
    hub = hub_name(about["base"])
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [vtools, chat]"]
    head += [f"base_model: {hub}"] if hub else []
    counts = "\n".join(
        f"| {kind} | {name} | {count} |"
        for kind, found in (("source", data["sources"]), ("licence", data["licenses"]))
        for name, count in found.items()
    )
    held = ""
    if result["eval_loss_before"] is not None:
        held = f" Held-out loss: {result['eval_loss_before']:.4f} before, {result['eval_loss_after']:.4f} after."
    settings = "\n".join(f"| {name} | {value} |" for name, value in arguments.items() if value is not None)
    lines = "\n".join(head)
    return f"""---
{lines}
---
# A chat model tuned from {hub or Path(about["base"]).name}

Trained with vtools {about["versions"]["vtools"]} on {data["conversations"]} conversations
({data["data_tokens"]:,} tokens, of which {data["data_trained_tokens"]:,}, the assistant's, were trained),
in {result["steps"]} steps; the last loss was {result["loss"]:.4f}.{held}
Its prompts follow the template `{about["template"]}`, stored beside the weights.

## Data
| | | conversations |
|---|---|---|
{counts}

A licence of the data, and that of the base, may limit what this model may be used for.

## Settings
| | |
|---|---|
{settings}

`vtools.json` has the digests of data, base and template, and all versions.
"""


def _base_digest(folder: Path) -> str:
    """Tell one base model from another without reading it whole: its configuration, and the end of each weight file."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "tokenizer.json"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with open(path, "rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - (1 << 20)))
            digest.update(f"{path.name}:{size}:".encode() + stream.read())
    return digest.hexdigest()
