# ruff: noqa: TID253
"""Provenance of the weights: the contents of vtools.json, and the model card."""

import platform
from pathlib import Path
from typing import Any

import torch
import transformers

import vtools
from vtools import provenance
from vtools.models.reference import hub_name
from vtools.train.loop import Result
from vtools.train.request import Inputs, Request

# The options shown in the card.
ARGUMENTS = (
    "epochs", "max_steps", "batch", "lr", "warmup", "schedule", "max_tokens", "overlong", "lora", "lora_alpha",
    "lora_targets", "train_embeddings", "dtype", "save_dtype", "seed",
)  # fmt: skip


def describe(request: Request, inputs: Inputs, run: dict[str, Any], result: Result) -> dict[str, Any]:
    """What the weights were made from and how; the same run gives the same text, on any number of ranks."""
    arguments = {**vars(request), "max_tokens": inputs.max_tokens, "dtype": run["--dtype"]}
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
        "arguments": {name: arguments[name] for name in ARGUMENTS},
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


def _in_a_cell(text: str) -> str:
    """A text of the data's, which may be anything, where a line end or a bar would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def card(about: dict[str, Any]) -> str:
    """The model card for hubs, from the result of `describe`; names the base only if it is on the hub."""
    data, arguments, result = about["data"], about["arguments"], about["result"]
    hub = hub_name(about["base"])
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [vtools, chat]"]
    head += [f"base_model: {hub}"] if hub else []
    counts = "\n".join(
        f"| {kind} | {_in_a_cell(name)} | {count} |"
        for kind, found in (("source", data["sources"]), ("license", data["licenses"]))
        for name, count in found.items()
    )
    held = ""
    if result["eval_loss_before"] is not None:
        held = f" Held-out loss: {result['eval_loss_before']:.4f} before, {result['eval_loss_after']:.4f} after."
    rope = about["run"]["rope scaling"]
    longer = ""
    if rope:
        limit, kind, factor = (rope[key] for key in ("max_position_embeddings", "rope_type", "factor"))
        longer = (
            f"\nIt reads up to {limit:,} tokens: its positions are scaled (RoPE scaling {kind}, factor {factor:g})."
        )
    settings = "\n".join(
        f"| {name} | {value} |" for name, value in arguments.items() if value is not None and value is not False
    )
    lines = "\n".join(head)
    return f"""---
{lines}
---
# A chat model tuned from {hub or Path(about["base"]).name}

Trained with vtools {about["versions"]["vtools"]} on {data["conversations"]} conversations
({data["data_tokens"]:,} tokens, of which {data["data_trained_tokens"]:,}, the assistant's, were trained),
in {result["steps"]} steps; the last loss was {result["loss"]:.4f}.{held}
Its prompts follow the template `{about["template"]}`, stored beside the weights.{longer}

## Data
| | | conversations |
|---|---|---|
{counts}

A license of the data, and that of the base, may limit what this model may be used for.

## Settings
| | |
|---|---|
{settings}

`{provenance.FILE}` has the digests of data, base and template, and all versions.
"""
