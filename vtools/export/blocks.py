# ruff: noqa: TID253  imported lazily by the command
"""Blocks of a tensor's rows, and their bytes in the types of a GGUF file."""

import gguf
import numpy as np

from vtools.export import k_quants
from vtools.weights import dtypes
from vtools.weights.dtypes import Bytes

BLOCK = 1 << 20  # bytes read from the source at once
# The largest magnitude that K-quant scales can hold: beyond it llama.cpp silently writes zeros.
LARGEST = {"q4_k": 65504 * 63, "q5_k": 65504 * 63, "q6_k": 65504 * 127 * 31}


def rows_at_once(row_bytes: int, head: int) -> int:
    """Rows per block: whole heads where heads are permuted."""
    rows = max(1, BLOCK // row_bytes)
    return max(head, rows // head * head) if head else rows


def interleave(raw: Bytes, row_bytes: int, head: int) -> Bytes:
    """Interleave the two halves of each head's rows: row i of the halves becomes rows 2i and 2i + 1."""
    return raw.reshape(-1, 2, head // 2, row_bytes).swapaxes(1, 2).reshape(-1)


def encode(raw: Bytes, dtype: str, columns: int, wanted: str) -> Bytes:
    """Rows of floats as the bytes of a GGUF type.

    Raises ValueError for NaN and infinity, and for a value beyond the range of that type.
    """
    whole = wanted in ("f32", "f16", "bf16")
    floats = wanted.upper() if whole else "F32"
    made = dtypes.convert(raw, dtype, floats)
    if not dtypes.finite(made, floats):
        if not dtypes.finite(raw, dtype):
            raise ValueError("NaN or infinity in its values: these weights are broken")
        raise _beyond(floats.lower())
    if whole:
        return made
    rows = made.view("<f4").reshape(-1, columns)
    kind = gguf.GGMLQuantizationType[wanted.upper()]
    if wanted in LARGEST and max(rows.max(), -rows.min()) > LARGEST[wanted]:
        raise _beyond(wanted)
    with np.errstate(all="ignore"):  # scales that overflow are detected below; underflow makes zeros
        made = k_quants.quantize(rows, kind) if wanted.endswith("_k") else np.asarray(gguf.quants.quantize(rows, kind))
    # The fp16 scales of a block: one or two at its start, or, for Q6_K, one at its end.
    scales = slice(-2, None) if wanted == "q6_k" else slice(4 if wanted.endswith(("_1", "_k")) else 2)
    blocks = made.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    if not dtypes.finite(np.ascontiguousarray(blocks[:, scales]), "F16"):
        raise _beyond(wanted)
    return made.reshape(-1)


def _beyond(name: str) -> ValueError:
    return ValueError(f"a value beyond the range of {name}" + ("; --type f32 holds it" if name != "f32" else ""))
