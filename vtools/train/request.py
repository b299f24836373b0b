"""The input of a training run: the command line, what was read, and where the result goes."""

import functools
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vtools.models.template import Template, load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.train.data import Corpus


class Request(SimpleNamespace):
    """The options of `train` by their names in its signature, with presets and defaults filled in."""

    @property
    def chat_template(self) -> Template:
        """The template to train with, loaded once in a process. Raises Failure as load_template does."""
        return _template(self.model, self.template, self.system, self.fold_system)


@functools.lru_cache(maxsize=1)
def _template(model: str, name: str | None, system: str | None, fold_system: bool) -> Template:
    return load_template(name, load_tokenizer(model), system, fold_system)


@dataclass(frozen=True)
class Inputs:
    """What was read and decided before loading weights; sent to every rank."""

    folder: Path  # of the base model
    template_name: str
    template_source: str
    corpus: Corpus
    held_out: Corpus | None
    max_tokens: int
    rope: dict[str, Any] | None
    steps: int
    warmup: int
    nproc: int  # ranks on this node

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation, trained or held out."""
        return max(max(corpus.lengths) for corpus in (self.corpus, self.held_out) if corpus is not None)

    def summary(self) -> dict[str, Any]:
        """The counts for the first line of the metrics and for the dry run."""
        return {
            "steps": self.steps,
            "warmup_steps": self.warmup,
            "conversations": len(self.corpus),
            "rejected": self.corpus.rejected,
            "reasons": dict(sorted(self.corpus.reasons.items())),
            "truncated": self.corpus.truncated,
            "data_tokens": self.corpus.tokens,
            "data_trained_tokens": self.corpus.trained_tokens,
        }


@dataclass(frozen=True)
class Job:
    """What every rank receives."""

    request: Request
    inputs: Inputs
    out: Path
