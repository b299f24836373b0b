"""Which run a folder holds: refusing another run's checkpoints, and telling where weights came from."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vtools
from vtools.process import Failure

if TYPE_CHECKING:
    from vtools.train.job import Inputs, Request
    from vtools.train.loop import Result

FILE = "vtools.json"


def identity(request: Request, inputs: Inputs, dtype: str) -> dict[str, Any]:
    """All that decides a run's weights, by the name a user knows it by.

    --micro-tokens is not here: it changes the order of additions, not what is computed, and whoever runs out of
    memory must be able to lower it.
    """
    source = hashlib.blake2b(inputs.template.source.encode(), digest_size=8).hexdigest()
    return {
        "--model": _base_digest(inputs.template.tokenizer.folder),
        "--template": f"{inputs.template.name} {source}",
        "data": inputs.corpus.digest(),
        "--eval": inputs.held_out.digest() if inputs.held_out else None,
        "--eval-every": request.eval_every,
        "steps": inputs.steps,
        "--batch": request.batch,
        "--lr": request.lr,
        "warm-up steps": inputs.warmup,
        "--seed": request.seed,
        "--dtype": dtype,
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


def refuse_differences(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise Failure naming what differs between the run in `out` and this one."""
    differences = [f"{key} was {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key]]
    if differences:
        raise Failure(
            f"{out}: holds another run: {'; '.join(differences)}. "
            f"Repeat its command, choose another --out, or --resume never to start over"
        )


def describe(request: Request, inputs: Inputs, run: dict[str, Any], result: Result) -> dict[str, Any]:
    """What the weights were made from and with; the same run gives the same text."""
    import torch
    import transformers

    held = [loss for _, loss in sorted(result.held_out.items())]
    return {
        "tool": "train",
        "base": request.model,
        "template": inputs.template.name,
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
            "max_tokens": inputs.max_tokens,
            "overlong": request.overlong,
            "micro_tokens": request.micro_tokens,
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
