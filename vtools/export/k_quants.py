# ruff: noqa: TID253  imported lazily by the command
"""K-quants computed by llama.cpp: by its program on the PATH, or its C function in the xllamacpp wheel."""

import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from vtools import process
from vtools.process import Failure
from vtools.weights.dtypes import Bytes


def program() -> str | None:
    """The path of llama-quantize, if installed. Raises Failure if neither it nor the library is available."""
    found = shutil.which("llama-quantize")
    if found is None and _function() is None:
        raise Failure(
            f"K-quants need llama.cpp: {process.install('llama-cpp')}, or put its llama-quantize on the PATH; "
            "--type q8_0 needs neither"
        )
    return found


@functools.cache
def _function() -> Any:
    """ggml_quantize_chunk, safe to call from several threads; None without xllamacpp."""
    package = importlib.util.find_spec("xllamacpp")
    for folder in (package and package.submodule_search_locations) or []:
        for path in Path(folder).glob("*.so"):
            function = getattr(ctypes.CDLL(str(path)), "ggml_quantize_chunk", None)
            if function is not None:
                function.restype = ctypes.c_size_t
                function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
                return function
    return None


def quantize(rows: np.ndarray[Any, np.dtype[np.float32]], kind: gguf.GGMLQuantizationType) -> Bytes:
    """Rows of finite numbers as bytes of the type `kind`; the row length must be a multiple of its block."""
    count, columns = rows.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, made = np.ascontiguousarray(rows), np.empty(count * columns // block * size, np.uint8)
    done = _function()(int(kind), rows.ctypes.data, made.ctypes.data, 0, count, columns, None)
    assert done == len(made)
    return made


def run(program: str, source: Path, target: Path, kind: str, jobs: int) -> None:
    """Have llama-quantize convert a GGUF file; its output is shown if it fails. Raises Failure."""
    parent = os.getpid()
    done = subprocess.run(
        [program, str(source), str(target), kind.upper(), str(jobs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: process.die_with_parent(parent),
    )
    if done.returncode:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        raise Failure(f"{program} failed with exit status {done.returncode}; see its output above")
