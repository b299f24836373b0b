"""Loading a model with transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtools.models.configs import TORCH_NAMES
from vtools.models.quiet import quiet_transformers
from vtools.models.reference import model_folder
from vtools.process import Failure

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(reference: str, dtype: str = "fp32") -> PreTrainedModel:
    """The model in evaluation mode on the CPU, weights in `dtype`. Raises Failure."""
    place = model_folder(reference)
    import torch
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    if not (place / "config.json").is_file():
        raise Failure(f"{reference}: no config.json in {place}")
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, TORCH_NAMES[dtype]))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Failure(f"{reference}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    return model.eval()
