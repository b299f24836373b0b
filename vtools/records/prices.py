"""Prices from a file: dollars per hour of a GPU or machine, and per million tokens of a model, by name."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vtools.process import Failure

BATCH = 0.5  # of a price, for what is asked by a batch, where the file does not say otherwise
EXAMPLE = '{"gpu": {"a100-80g": 1.8, "here": 0.9}, "model": {"gpt-4.1": {"in": 2, "out": 8}}}'
Price = TypeVar("Price")


@dataclass(frozen=True)
class Prices:
    """The prices of one file."""

    file: str
    gpus: dict[str, float]
    models: dict[str, tuple[float, float]]
    batches: dict[str, tuple[float, float]]

    def gpu_hour(self, name: str) -> float:
        """Dollars per hour of a GPU or a machine (`here` is this one). Raises Failure if the file lacks it."""
        return self._of("gpu", self.gpus, name)

    def tokens(self, model: str) -> tuple[float, float]:
        """Dollars per million tokens that a model reads, and that it writes. Raises Failure if the file lacks it."""
        return self._of("model", self.models, model)

    def batch_tokens(self, model: str) -> tuple[float, float]:
        """`tokens` by the Batch API: what `batch` of the model says, else half. Raises Failure if the file lacks it."""
        return self._of("model", self.batches, model)

    def _of(self, kind: str, known: dict[str, Price], name: str) -> Price:
        found = next((price for listed, price in known.items() if listed.lower() == name.lower()), None)
        if found is None:
            raise Failure(f"{self.file}: no price for the {kind} {name}; it has {', '.join(known) or 'none'}")
        return found


def read(file: str) -> Prices:
    """Read a file of prices. Raises Failure if it is malformed, OSError."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        unknown = content.keys() - {"gpu", "model"}
        if unknown:
            raise ValueError(f"{min(unknown)} is neither gpu nor model")
        gpus = {name: _dollars(name, amount) for name, amount in content.get("gpu", {}).items()}
        models, batches = {}, {}
        for name, price in content.get("model", {}).items():
            models[name] = _tokens(name, price)
            half = (BATCH * models[name][0], BATCH * models[name][1])
            batches[name] = _tokens(name, price["batch"]) if "batch" in price else half
    except (AttributeError, KeyError, TypeError):
        raise Failure(f"{file}: not prices in the form {EXAMPLE}") from None
    except ValueError as error:
        raise Failure(f"{file}: {error}; prices look like {EXAMPLE}") from None
    return Prices(file, gpus, models, batches)


def _tokens(name: str, price: dict[str, Any]) -> tuple[float, float]:
    return _dollars(name, price["in"]), _dollars(name, price["out"])


def _dollars(name: str, amount: Any) -> float:
    if type(amount) not in (int, float) or not 0 <= amount < math.inf:
        raise ValueError(f"{name}: {json.dumps(amount)} is not a number of dollars")
    return float(amount)
