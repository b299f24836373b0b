# ruff: noqa: TID253  imported lazily by the command
"""Tensors in blocks of rows: read in order, converted by threads, handed on in order; memory holds a few blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import gguf
import numpy as np

from vtools import dtypes
from vtools.dtypes import Bytes
from vtools.export import kquants

BLOCK = 1 << 20  # bytes of the source that are read at once
Item = TypeVar("Item")


def in_order(items: Iterable[Item], convert: Callable[[Item], Bytes], jobs: int) -> Iterator[tuple[Item, Bytes]]:
    """Each item with its conversion, in order; items are drawn (read) as memory allows, `jobs` convert at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting: deque[tuple[Item, Future[Bytes]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(convert, item)))
            if len(waiting) > jobs + 1:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def rows_at_once(row_bytes: int, head: int) -> int:
    """How many rows make a block: whole heads where heads are permuted."""
    rows = max(1, BLOCK // row_bytes)
    return max(head, rows // head * head) if head else rows


def interleave(raw: Bytes, row_bytes: int, head: int) -> Bytes:
    """Rows of whole heads, each head's two halves made into neighbours: row i of either half to rows 2i and 2i + 1."""
    return raw.reshape(-1, 2, head // 2, row_bytes).swapaxes(1, 2).reshape(-1)


def encode(raw: Bytes, dtype: str, columns: int, wanted: str) -> Bytes:
    """Rows of floats as the bytes of a GGUF type.

    Raises ValueError for NaN and infinity, and for what F16 cannot hold.
    """
    if not dtypes.finite(raw, dtype):
        raise ValueError("NaN or infinity among its values: these weights are broken")
    if wanted in ("f32", "f16", "bf16"):
        made = dtypes.convert(raw, dtype, wanted.upper())
        if wanted == "f16" and not dtypes.finite(made, "F16"):
            raise ValueError("a value beyond the range of F16; --type bf16 or f32 holds it")
        return made
    rows = dtypes.convert(raw, dtype, "F32").view("<f4").reshape(-1, columns)
    if wanted.endswith("_k"):
        return kquants.quantize(rows, wanted).reshape(-1)
    kind = gguf.GGMLQuantizationType[wanted.upper()]
    return np.asarray(gguf.quants.quantize(rows, kind)).reshape(-1)
