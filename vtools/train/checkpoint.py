# ruff: noqa: TID253
"""Checkpoints, whole or absent: written by all ranks in the background while training continues."""

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from transformers import PreTrainedModel

from vtools.files.atomic import part_of, seal
from vtools.process import Failure, say
from vtools.train.ranks import Ranks

NOTE = "note.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
BYTES = 4 * (1 + len(MOMENTS))  # of a trained parameter, in fp32


@dataclass
class _Pending:
    step: int
    note: dict[str, Any]
    part: Path
    written: Future[Any] | None


class Checkpoints:
    """The checkpoints folder/step-N of a run: weights and AdamW's moments in fp32, one file per rank for its shards.

    The format is torch.distributed.checkpoint's, which any number of ranks can read.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self._pending: _Pending | None = None
        # The copy to write in the background uses the same pinned memory each time.
        pinned = StagingOptions(use_shared_memory=False, use_async_staging=False)
        self._stager = DefaultStager(pinned) if ranks.device.type == "cuda" else None
        self._aside = True

    def save(
        self, step: int, model: PreTrainedModel, optimizer: torch.optim.Optimizer, note: dict[str, Any], wait: bool
    ) -> None:
        """Write a checkpoint: before returning if `wait` or if no memory can be pinned, else in the background.

        Raises Failure if it cannot be written; earlier checkpoints stay intact.
        """
        self.finish()
        part = part_of(self._place(step))
        with self._explained(step):
            if self.ranks.rank == 0:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
        self.ranks.wait()
        if not part.is_dir():
            raise Failure(f"{self.folder}: not the folder that rank 0 writes to; --out must be shared by all machines")
        state = state_of(model, optimizer)
        self._pending = _Pending(step, note, part, None)
        with self._explained(step), _silent():
            written = None if wait else self._begun(state, part)
            if written is None:  # other ranks may have begun: both ways exchange the same
                dcp.save(state, checkpoint_id=part, process_group=self.ranks.saving)
            self._pending.written = written
        if wait:
            self.finish()

    def _begun(self, state: dict[str, Any], part: Path) -> Future[Any] | None:
        """Begin to write a copy of the state in the background; None where the host has no memory to pin for it."""
        if not self._aside:
            return None
        try:
            future = dcp.async_save(
                state, checkpoint_id=part, process_group=self.ranks.saving, async_stager=self._stager
            )
        except RuntimeError as error:
            if "Registering memory failed" not in str(error):
                raise
            self.close()
            self._aside = False
            say("train", "no host memory can be pinned for a copy of the weights: training waits for checkpoints")
            return None
        assert isinstance(future, Future)
        return future

    def poll(self) -> None:
        """Seal the checkpoint being written, if it is done."""
        if self._pending and self._pending.written and self._pending.written.done():
            self._seal()

    def finish(self) -> None:
        """Wait for the checkpoint being written."""
        if self._pending:
            self._seal()
        self.ranks.wait()

    def close(self) -> None:
        """Free the pinned memory."""
        if self._stager:
            self._stager.close()

    def _seal(self) -> None:
        """Give a checkpoint its name, only once all its files are on disk; then remove older ones."""
        pending, self._pending = self._pending, None
        assert pending is not None
        with self._explained(pending.step), _silent():
            if pending.written:
                pending.written.result()
            if self.ranks.rank:
                return
            sizes = {path.name: path.stat().st_size for path in pending.part.iterdir()}
            note = {**pending.note, "step": pending.step, "files": sizes}
            (pending.part / NOTE).write_text(json.dumps(note, indent=1))
            seal(self._place(pending.step))
        for _, old in _steps(self.folder)[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, CheckpointException) as error:  # anything else means that a rank died
            causes = getattr(error, "failures", None)  # of a CheckpointException, by rank: (exception, traceback)
            cause = next(iter(causes.values()))[0] if causes else error
            shutil.rmtree(part_of(self._place(step)), ignore_errors=True)
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise Failure(
                f"{self._place(step)}: cannot be saved ({reason}); earlier checkpoints are intact: free "
                f"space and repeat the command to resume"
            ) from None


def state_of(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Trained parameters and their moments, by name; missing moments are set to zero in the optimiser."""
    state: dict[str, Any] = {}
    for name, parameter in model.named_parameters():  # a tied weight is listed once
        if parameter.requires_grad:
            state[f"weight/{name}"] = parameter.detach()
            moments = optimizer.state[parameter]
            if not moments:
                moments["step"] = torch.zeros((), device=parameter.device)
                moments |= {key: torch.zeros_like(parameter) for key in MOMENTS}
            state |= {f"{key}/{name}": moments[key] for key in MOMENTS}
    assert len(optimizer.state) == len(optimizer.param_groups[0]["params"]), "a gathered parameter is unknown to it"
    return state


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its note; torn ones are skipped."""
    for _, path in _steps(folder):
        try:
            note = json.loads((path / NOTE).read_text())
            if all((path / name).stat().st_size == size for name, size in note["files"].items()):
                return path, note
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def restore(path: Path, updates: int, model: PreTrainedModel, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    """Load a checkpoint's weights and moments into the model and its new optimiser, bit-identical.

    `updates` is the number of Adam updates so far.
    """
    state = state_of(model, optimizer)
    with _silent():
        try:
            dcp.load(state, checkpoint_id=path, process_group=ranks.saving)
        except (OSError, CheckpointException) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Failure(f"{path}: cannot be read ({reason}); remove it and repeat the command") from None
    for moments in optimizer.state.values():
        moments["step"] = torch.tensor(float(updates), device=moments["exp_avg"].device)


def clear(folder: Path, step: int) -> None:
    """Remove half-written checkpoints of a killed run, and torn ones after the one to resume from."""
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part)
    for number, path in _steps(folder):
        if number > step:
            shutil.rmtree(path)


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints by step, the newest first."""
    found = [(int(path.name[5:]), path) for path in folder.glob("step-*") if path.name[5:].isdecimal()]
    return sorted(found, reverse=True)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress torch.distributed.checkpoint's warnings about its own internals."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
