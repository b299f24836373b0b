# ruff: noqa: TID253
"""The training loop: steps, held-out loss, metrics, checkpoints, and what signals ask for."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vtools import process
from vtools.process import Failure
from vtools.train import checkpoint, plan
from vtools.train.data import Corpus
from vtools.train.loss import summed_loss
from vtools.train.pack import pack

CLIP = 1.0
DEFAULT_MICRO_TOKENS = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Recipe:
    """What decides the weights of a run, beside the model and the data."""

    steps: int
    batch: int
    micro_tokens: int
    lr: float
    warmup: int
    seed: int
    dtype: torch.dtype
    eval_every: int


@dataclass(frozen=True)
class Saving:
    """Where and how often checkpoints go; `note` is kept in each."""

    out: Path
    every_steps: int
    every_seconds: float
    keep: int
    note: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.out / "checkpoints"


@dataclass
class Result:
    """Where a run stands: the steps done, the last step's loss, and the held-out losses by step."""

    step: int = 0
    loss: float | None = None
    held_out: dict[int, float] = field(default_factory=dict)


class Asked:
    """What signals have asked for: SIGTERM, SIGINT and SIGHUP to save and end, SIGUSR1 to save and go on."""

    def __init__(self) -> None:
        self.end: int | None = None
        self.save = False

    def __call__(self, signum: int, frame: object) -> None:
        if signum == signal.SIGUSR1:
            self.save = True
        elif self.end is not None:  # asked twice: do not wait for the save
            raise process.Interrupted(signum)
        else:
            self.end = signum

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the length of the block."""
        before = {}
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            if signum == signal.SIGUSR1 or signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, self)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def run(
    model: PreTrainedModel,
    corpus: Corpus,
    evaluation: Corpus | None,
    recipe: Recipe,
    saving: Saving,
    resume: bool,
    write: Callable[[dict[str, Any]], None],
    tick: Callable[[int], Any],
) -> Result:
    """Train the model in place, from the newest checkpoint if there is one; metrics go to `write`.

    Raises TryAgain when preempted and saved, Failure when the loss is no number.
    """
    parameters = list(model.parameters())
    # Rates are set at each step; fused AdamW updates in one pass over memory, on the CPU too.
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
    result = Result()
    found = checkpoint.latest(saving.folder) if resume else None
    if found:
        path, note = found
        checkpoint.restore(path, model, optimizer)
        result = Result(note["step"], note["loss"], {int(step): loss for step, loss in note["held_out"].items()})
        tick(result.step)
    saved_step, saved_at = result.step, time.monotonic()
    started, done_here = time.monotonic(), 0
    asked = Asked()
    trainer = _Trainer(model, optimizer, corpus, recipe)

    def save() -> None:
        nonlocal saved_step, saved_at
        if saved_step != result.step:
            note = {**saving.note, "loss": result.loss, "held_out": result.held_out}
            checkpoint.save(saving.folder, result.step, model, optimizer, note, saving.keep)
        saved_step, saved_at = result.step, time.monotonic()

    def end_if_asked() -> None:
        if asked.end is None:
            return
        save()
        if asked.end != signal.SIGTERM:
            raise process.Interrupted(asked.end)
        if not result.step:
            raise process.TryAgain("preempted before the first step; give the same command again")
        raise process.TryAgain(f"preempted and saved at step {result.step} of {recipe.steps}; the same command goes on")

    with asked.listening():
        while True:
            step = result.step
            due = step in (0, recipe.steps) or (recipe.eval_every and step % recipe.eval_every == 0)
            if evaluation is not None and due and step not in result.held_out:
                loss = held_out_loss(model, evaluation, recipe, lambda: asked.end is not None)
                end_if_asked()
                result.held_out[step] = loss
                write({"step": step, "eval_loss": loss, "eval_tokens": evaluation.trained_tokens})
            end_if_asked()
            if step == recipe.steps:
                return result
            before = time.monotonic()
            metrics = trainer.step(step, lambda: asked.end is not None)
            end_if_asked()
            assert metrics is not None
            now = time.monotonic()
            done_here += 1
            result.step, result.loss = step + 1, metrics["loss"]
            metrics["tokens_per_s"] = round(metrics["tokens"] / max(now - before, 1e-9), 1)
            metrics["ms"] = round((now - before) * 1000)
            metrics["eta_s"] = round((now - started) / done_here * (recipe.steps - result.step))
            write(metrics)
            tick(1)
            request = saving.out / "SAVE"
            wanted = asked.save or request.exists()
            if recipe.steps > result.step and (
                wanted
                or (saving.every_steps and result.step % saving.every_steps == 0)
                or (saving.every_seconds and now - saved_at >= saving.every_seconds)
            ):
                asked.save = False
                save()
                request.unlink(missing_ok=True)


class _Trainer:
    """One optimiser step at a time, each a function of the weights and the step's number alone."""

    def __init__(
        self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, corpus: Corpus, recipe: Recipe
    ) -> None:
        self.model, self.optimizer, self.corpus, self.recipe = model, optimizer, corpus, recipe
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.epoch, self.steps = -1, [[0]]

    def step(self, step: int, abandon: Callable[[], bool]) -> dict[str, Any] | None:
        """Train step number `step` (from 0) and return its metrics; None, and nothing changed, if abandoned.

        The loss of each micro-batch is divided by the trained tokens of the whole step, so that it does not matter
        how the step was cut. Raises Failure, before the weights change, when loss or gradient is no number.
        """
        recipe, corpus = self.recipe, self.corpus
        epoch, index = divmod(step, math.ceil(len(corpus) / recipe.batch))
        if epoch != self.epoch:
            self.epoch, self.steps = epoch, plan.plan(corpus.lengths, recipe.seed, epoch, recipe.batch)
        conversations = self.steps[index]
        trained = sum(corpus.trained_counts[one] for one in conversations)
        device = self.parameters[0].device
        seed = hashlib.blake2b(f"{recipe.seed}:{step}".encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(seed, "little"))
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        for members in plan.micro_batches(corpus.lengths, conversations, recipe.micro_tokens):
            if abandon():
                self.optimizer.zero_grad(set_to_none=True)
                return None
            packed = pack((corpus.conversation(one) for one in members), device)
            loss = summed_loss(self.model, packed, recipe.dtype) / trained
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP).item()
        value = total.item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise Failure(
                f"step {step + 1}: the loss is {value:g} and the gradient's norm {norm:g}: training has diverged; the "
                f"weights saved before are whole; lower --lr, lengthen --warmup, or try --dtype fp32"
            )
        rate = plan.learning_rate(step, recipe.steps, recipe.warmup, recipe.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "step": step + 1,
            "epoch": round((epoch * len(corpus) + min((index + 1) * recipe.batch, len(corpus))) / len(corpus), 6),
            "loss": value,
            "lr": rate,
            "grad_norm": norm,
            "tokens": sum(corpus.lengths[one] for one in conversations),
            "trained_tokens": trained,
        }


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, corpus: Corpus, recipe: Recipe, abandon: Callable[[], bool]) -> float:
    """The mean loss of a trained token over conversations that are not trained; NaN if abandoned."""
    model.eval()
    device = next(model.parameters()).device
    total = 0.0
    for start in range(0, len(corpus), recipe.batch):
        conversations = range(start, min(start + recipe.batch, len(corpus)))
        for members in plan.micro_batches(corpus.lengths, conversations, recipe.micro_tokens):
            if abandon():
                return math.nan
            packed = pack((corpus.conversation(one) for one in members), device)
            total += summed_loss(model, packed, recipe.dtype).item()
    return total / corpus.trained_tokens


def prepare(device: torch.device) -> None:
    """The same run gives the same bits: kernels that add in a changing order are not used."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is only repeatable with a fixed workspace
        torch.backends.cuda.matmul.allow_tf32 = True  # where fp32 products remain
    else:
        # Rows of ever other lengths would leave glibc's heap in pieces: large tensors get mappings of their own.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and needs none
        if mallopt is not None:
            m_mmap_threshold = -3
            mallopt(m_mmap_threshold, 4 << 20)


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the hardware multiplies it, else fp32."""
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions oneDNN still takes bf16, and only emulates it.
        emulated = (
            torch.backends.cpu.get_cpu_capability().startswith("AVX") and not torch.cpu._is_avx512_bf16_supported()
        )
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() and not emulated
    return torch.bfloat16 if fast else torch.float32
