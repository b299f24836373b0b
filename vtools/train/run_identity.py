"""The identity of a run: everything that decides its weights. The folder of a different run is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

from vtools import provenance
from vtools.process import Failure
from vtools.train.request import Inputs, Request
from vtools.weights import model_digest

# Options whose values are not in the identity. For the first ones, their results are; the others only change the order
# of additions, so that a run short of memory or GPUs can be resumed. Any other option is part of the identity.
BY_OUTCOME = {
    "data", "dtype", "epochs", "evaluation", "max_steps", "max_tokens", "model", "overlong", "preset", "rope_scaling",
    "template", "warmup",
}  # fmt: skip
UNDECIDING = {
    "attention", "compiled", "dry_run", "gpu", "jobs", "keep", "micro_tokens", "nnodes", "nproc", "out", "prices",
    "quiet", "rdzv", "recompute", "rejects", "resume", "samples", "save_every", "verbose",
}  # fmt: skip


def identity(request: Request, inputs: Inputs, dtype: str) -> dict[str, Any]:
    """Everything that decides a run's weights, by the user's names."""
    source = hashlib.blake2b(inputs.template_source.encode(), digest_size=8).hexdigest()
    others = BY_OUTCOME | UNDECIDING
    return {
        "--model": model_digest.digest(inputs.folder, request.quiet),
        "--template": f"{inputs.template_name} {source}",
        "data": inputs.corpus.digest,
        "--eval": inputs.held_out.digest if inputs.held_out is not None else None,
        "steps": inputs.steps,
        "warm-up steps": inputs.warmup,
        "rope scaling": inputs.rope,
        "--dtype": dtype,
        **{f"--{name.replace('_', '-')}": value for name, value in sorted(vars(request).items()) if name not in others},
    }


def finished(out: Path, now: dict[str, Any]) -> bool:
    """Whether `out` has the finished result of this very run. Raises Failure if it has that of another."""
    path = out / provenance.FILE
    if not path.exists():
        return False
    try:
        before = dict(json.loads(path.read_text())["run"])
    except (ValueError, KeyError, TypeError):
        raise Failure(f"{path}: not written by `vtools train`; choose another --out") from None
    refuse_differences(out, before, now)
    return True


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two runs, in words."""
    return [f"{key} was {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key]]


def refuse_other_checkpoint(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise Failure if the checkpoint in `out` is another run's. Its result may be saved in any dtype."""
    refuse_differences(out, before, {key: value for key, value in now.items() if key != "--save-dtype"})


def refuse_differences(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise Failure naming what differs between the run in `out` and this one."""
    found = differences(before, now)
    if found:
        raise Failure(
            f"{out}: contains another run: {'; '.join(found)}. "
            f"Repeat its command, choose another --out, or start over with --resume never"
        )
