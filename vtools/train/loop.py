# ruff: noqa: TID253
"""The training loop: steps, held-out loss, samples, metrics, checkpoints, signals."""

import contextlib
import dataclasses
import hashlib
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from vtools import options, process
from vtools.process import Failure
from vtools.train import checkpoint, device, schedule, shard
from vtools.train.data import Corpus
from vtools.train.loss import summed_loss
from vtools.train.pack import pack
from vtools.train.ranks import Ranks
from vtools.train.signals import Asked

CLIP = 1.0
FIRST_SCALE, SCALE_STEPS = 2.0**16, 2000  # fp16 loss scaling: the defaults of torch.amp.GradScaler
WORTH_SAVING = 60.0  # seconds of training


@dataclass(frozen=True)
class Recipe:
    """What decides the weights of a run, besides the model and the data."""

    steps: int
    batch: int
    micro_tokens: int
    lr: float
    warmup: int
    schedule: str
    seed: int
    dtype: torch.dtype
    eval_every: int


@dataclass(frozen=True)
class Saving:
    """Where and how often to save checkpoints; `note` is stored in each."""

    out: Path
    every: tuple[int, float]  # steps, seconds; 0 is never
    keep: int
    note: dict[str, Any]
    aside: bool  # whether training continues while one is written
    last: bool = False  # whether to save the last step in any case

    @property
    def folder(self) -> Path:
        return self.out / "checkpoints"


@dataclass
class Result:
    """The state of a run: steps done, loss of the last step, held-out losses by step."""

    step: int = 0
    loss: float | None = None
    held_out: dict[int, float] = field(default_factory=dict)
    scale: float = FIRST_SCALE  # the fp16 loss scale, and the successful steps since it changed
    good_steps: int = 0
    updates: int = 0  # of the weights; fp16 may skip a step


class Trainer:
    """A run on this rank. Each optimiser step is a function of the weights and the step number alone."""

    def __init__(
        self,
        model: PreTrainedModel,
        corpus: Corpus,
        evaluation: Corpus | None,
        recipe: Recipe,
        saving: Saving,
        ranks: Ranks,
        alone: bool = True,
    ) -> None:
        """`model(work, ...)` runs work(model, ...); see vtools.train.shard."""
        self.model, self.corpus, self.evaluation = model, corpus, evaluation
        self.recipe, self.saving, self.ranks = recipe, saving, ranks
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # The learning rate is set at each step. Fused AdamW updates in one pass over memory, also on the CPU.
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
        )
        self.result = Result()
        self.checkpoints = checkpoint.Checkpoints(saving.folder, saving.keep, ranks)
        self.asked = Asked(alone, says=alone)
        self.saved_step, self.saved_at = 0, time.monotonic()
        self.epoch, self.steps = -1, [[0]]

    def warm_up(self) -> None:
        """Compile for the same row of full length every time: kernels are specialised for the first row they see.

        A resumed run would begin with another row, and its kernels would add in another order. All that a step needs is
        in memory then: Adam's moments, and in the second pass gradients to add to.
        """
        checkpoint.state_of(self.model, self.optimizer)
        self.model.train()
        vocabulary = self.model.config.get_text_config().vocab_size
        size = max(self.recipe.micro_tokens, max(self.corpus.lengths))
        ids = [token % vocabulary for token in range(size)]
        row = pack([(ids, b"\0" + b"\1" * (len(ids) - 1))], self.ranks.device)
        for _ in range(2):
            self.model(summed_loss, row, 0.0).backward()
        self.optimizer.zero_grad(set_to_none=True)
        if self.evaluation is not None:
            self.model.eval()
            with torch.no_grad():
                self.model(summed_loss, row)
            shard.reshard(self.model)

    def restore(self, path: Path, note: dict[str, Any]) -> None:
        """Resume from a checkpoint and its note."""
        held_out = {int(step): loss for step, loss in note["held_out"].items()}
        self.result = options.fields_from(Result, {**note, "held_out": held_out})
        checkpoint.restore(path, self.result.updates, self.model, self.optimizer, self.ranks)
        self.saved_step = self.result.step

    def run(
        self,
        write: Callable[[dict[str, Any]], None],
        phase: Callable[[str], contextlib.AbstractContextManager[None]] = lambda what: contextlib.nullcontext(),
        sample: Callable[[], list[dict[str, str]]] | None = None,
        work: Callable[[Sequence[int]], float] | None = None,
    ) -> Result:
        """Train to the last step; metrics go to `write`, and `phase` is around what takes long between steps.

        `sample` answers questions at each held-out loss. `work` gives the MFU of training on conversations of these
        lengths in one second. Raises TryAgain if preempted and saved, Failure if the loss is not finite.
        """
        recipe, result = self.recipe, self.result
        started, first = time.monotonic(), result.step
        with self.asked.listening():
            while True:
                step = result.step
                due = step in (0, recipe.steps) or (recipe.eval_every and step % recipe.eval_every == 0)
                if self.evaluation is not None and due and step not in result.held_out:
                    before = time.monotonic()
                    with phase("computing the held-out loss"):
                        loss = self._held_out_loss(self.evaluation)
                    self._end_if_asked()
                    result.held_out[step] = loss
                    row = {"step": step, "eval_loss": loss, "eval_tokens": self.evaluation.trained_tokens}
                    with phase("answering samples"):
                        answers = {"samples": sample()} if sample else {}
                    write({**row, **answers, "ms": _ms(before)})
                self._end_if_asked()
                if step == recipe.steps:
                    # Exporting the model may fail, and can then be repeated.
                    with phase("saving the last step"):
                        self._save(wait=True, only_after=0 if self.saving.last else WORTH_SAVING)
                    self.checkpoints.close()
                    return result
                before = time.monotonic()
                metrics = self._step(step)
                if metrics is None:  # asked to end; metrics of a finished step are written first
                    continue
                seconds = time.monotonic() - before
                lengths = metrics.pop("lengths")
                metrics["tokens_per_s"] = round(metrics["tokens"] / max(seconds, 1e-9), 1)
                metrics["mfu"] = round(work(lengths) / seconds, 4) if work else None
                metrics["mem_gb"] = round(device.peak_memory(self.ranks.device) / 1e9, 3)
                metrics["ms"] = round(seconds * 1000)
                metrics["ckpt_ms"] = self._save_if_due()
                elapsed = time.monotonic() - started
                metrics["eta_s"] = round(elapsed / (result.step - first) * (recipe.steps - result.step))
                write(metrics)

    def _step(self, step: int) -> dict[str, Any] | None:
        """Train step number `step` (from 0) and return its metrics; if asked to end, None with nothing changed.

        The loss of each micro-batch is divided by the trained tokens of the whole step, so that the division into
        micro-batches does not matter. Raises Failure, before the weights change, if loss or gradient is not finite.
        """
        recipe, corpus, ranks, result = self.recipe, self.corpus, self.ranks, self.result
        epoch, index = divmod(step, math.ceil(len(corpus) / recipe.batch))
        if epoch != self.epoch:
            self.epoch, self.steps = epoch, schedule.steps(corpus.lengths, recipe.seed, epoch, recipe.batch)
        conversations = self.steps[index]
        trained = sum(corpus.trained_counts[one] for one in conversations)
        half = recipe.dtype == torch.float16
        scale = result.scale if half else 1.0
        seed = hashlib.blake2b(f"{recipe.seed}:{step}:{ranks.rank}".encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(seed, "little"))
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=ranks.device)
        packing = 0.0
        for members in self._mine(corpus, conversations):
            if self._asked_to_end():
                self.optimizer.zero_grad(set_to_none=True)
                return None
            before = time.monotonic()
            packed = pack((corpus.conversation(one) for one in members), ranks.device)
            packing += time.monotonic() - before
            loss = self.model(summed_loss, packed, scale / trained)
            loss.backward()
            total += loss.detach() / scale
        norm = self._clip(scale)
        (value,) = ranks.sums(total.item())
        rate = schedule.learning_rate(step, recipe.steps, recipe.warmup, recipe.lr, recipe.schedule)
        finite = math.isfinite(norm)
        if not math.isfinite(value) or not (finite or (half and scale > 1)):
            raise Failure(
                f"step {step + 1}: the loss is {value:g} and the gradient norm {norm:g}: training has diverged; "
                f"earlier checkpoints are intact; lower --lr, lengthen --warmup, or try --dtype fp32"
            )
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            result.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        device.tidy(ranks.device)
        if half:  # a gradient beyond fp16's range skips the step and halves the scale, as in torch.amp.GradScaler
            result.good_steps = result.good_steps + 1 if finite else 0
            if not finite or result.good_steps == SCALE_STEPS:
                result.scale, result.good_steps = scale * (2 if finite else 0.5), 0
        result.step, result.loss = step + 1, value
        lengths = [corpus.lengths[one] for one in conversations]
        seen = epoch * len(corpus) + min((index + 1) * recipe.batch, len(corpus))
        return {
            "step": step + 1,
            "epoch": round(seen / len(corpus), 6),
            "loss": value,
            "lr": rate,
            "grad_norm": norm if finite else None,
            "tokens": sum(lengths),
            "trained_tokens": trained,
            "data_ms": round(packing * 1000),
            "lengths": lengths,
        }

    def _mine(self, corpus: Corpus, conversations: Sequence[int]) -> list[list[int]]:
        """This rank's micro-batches for these conversations."""
        return schedule.divide(corpus.lengths, conversations, self.ranks.size, self.recipe.micro_tokens)[
            self.ranks.rank
        ]

    def _clip(self, scale: float) -> float:
        """Undo the loss scale and clip the gradient over all ranks to norm 1; returns the norm before clipping."""
        if scale != 1:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], 1 / scale)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    @torch.no_grad()
    def _held_out_loss(self, corpus: Corpus) -> float:
        """The mean loss per trained token over held-out conversations; NaN if asked to end."""
        self.model.eval()
        total = 0.0
        try:
            for start in range(0, len(corpus), self.recipe.batch):
                for members in self._mine(corpus, range(start, min(start + self.recipe.batch, len(corpus)))):
                    if self._asked_to_end():
                        return math.nan
                    packed = pack((corpus.conversation(one) for one in members), self.ranks.device)
                    total += self.model(summed_loss, packed).item()
        finally:
            shard.reshard(self.model)
        return self.ranks.sums(total)[0] / corpus.trained_tokens

    def _asked_to_end(self) -> bool:
        """Whether any rank was asked to end; all ranks get the same answer."""
        (end,) = self.ranks.largest(self.asked.end or 0)
        if end:  # never revoked: a signal may have come during the exchange
            self.asked.end = end
        return bool(end)

    def _end_if_asked(self) -> None:
        if not self._asked_to_end():
            return
        result = self.result
        self._save(wait=True)
        if self.asked.end != signal.SIGTERM:
            raise process.Interrupted(self.asked.end or signal.SIGTERM)
        if not result.step:
            raise process.TryAgain("preempted before the first step; repeat the command")
        steps = self.recipe.steps
        raise process.TryAgain(f"preempted and saved at step {result.step} of {steps}; repeat the command to resume")

    def _save_if_due(self) -> int:
        """Save if steps, time, a signal or the file SAVE require it; returns the ms that training was blocked."""
        step, saving, before = self.result.step, self.saving, time.monotonic()
        steps, seconds = saving.every
        self.checkpoints.poll()
        wanted = saving.out / "SAVE"
        signalled, self.asked.save = self.asked.save, False
        due = (
            signalled
            or (self.ranks.rank == 0 and wanted.exists())
            or bool(steps and step % steps == 0)
            or bool(seconds and before - self.saved_at >= seconds)
        )
        if self.ranks.largest(due)[0] and step < self.recipe.steps:
            self._save(wait=not saving.aside)
            wanted.unlink(missing_ok=True)
        return _ms(before)

    def _save(self, wait: bool, only_after: float = 0) -> None:
        result = self.result
        (old,) = self.ranks.largest(time.monotonic() - self.saved_at >= only_after)
        if self.saved_step != result.step and old:
            note = self.saving.note | dataclasses.asdict(result)  # a copy: the run continues while it is written
            self.checkpoints.save(result.step, self.model, self.optimizer, note, wait)
        else:
            self.checkpoints.finish()
        self.saved_step, self.saved_at = result.step, time.monotonic()


def _ms(since: float) -> int:
    return round((time.monotonic() - since) * 1000)
