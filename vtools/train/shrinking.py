"""A run whose first step does not fit into memory: it starts again with a plan that needs less."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtools.files.atomic import write
from vtools.process import Failure, TryAgain
from vtools.train import memory
from vtools.train.request import Request

FILE = ".plan.json"  # in the folder of the run, until it is finished: a run killed before its first checkpoint needs it
DECIDED = ("recompute", "micro_tokens", "compiled")  # same names in Plan and in Request


class Shrunk(TryAgain):
    """The first step did not fit into memory; the next start follows the smaller plan that was noted."""


def noted(out: Path, ranks: int) -> dict[str, Any] | None:
    """The plan noted in a run's folder after it ran out of memory on this many ranks."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((out / FILE).read_text())
        return {name: found["plan"][name] for name in DECIDED} if found["ranks"] == ranks else None
    return None


def shrink(out: Path, ranks: int, before: dict[str, Any], smaller: memory.Plan) -> Shrunk:
    """Note the plan that the next start follows; every rank that runs out of memory notes the same."""
    plan = {name: getattr(smaller, name) for name in DECIDED}
    with contextlib.suppress(TryAgain):  # another rank is writing it
        write(out / FILE, json.dumps({"ranks": ranks, "plan": plan}).encode())
    return Shrunk(f"out of memory with {_words(before)}; {_words(plan)} will be used instead")


def smaller(plan: dict[str, Any], choose: Callable[..., memory.Plan], request: Request) -> memory.Plan:
    """The fastest plan that needs at least a quarter less for activations than this one. Raises Failure if none does.

    `choose` is memory.choose for this model and these ranks.
    """
    failed = choose(1 << 62, plan["recompute"], plan["micro_tokens"]).memory
    available = failed.total - (failed.activations + failed.logits) // 4
    try:
        return choose(available, request.recompute, request.micro_tokens, plan["compiled"])
    except Failure:
        raise Failure(
            f"out of memory with {_words(plan)}; use more ranks, --recompute full, a lower --micro-tokens, a lower "
            "--max-tokens, or --lora"
        ) from None


def _words(plan: dict[str, Any]) -> str:
    return f"micro-batches of {plan['micro_tokens']} tokens and recompute {plan['recompute']}"
