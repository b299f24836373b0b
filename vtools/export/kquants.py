# ruff: noqa: TID253  imported lazily by the export command
"""Encoders for three of llama.cpp's K-quants, which the `gguf` package can only decode.

Format: block_q4_K, block_q5_K and block_q6_K of https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
A super-block holds 256 values of one row. In Q4_K and Q5_K it is 8 sub-blocks of 32, each `d·scale·code - dmin·minimum`
with 6-bit scales and minima; in Q6_K it is 16 sub-blocks of 16, each `d·scale·code` with signed 8-bit scales and codes
from -32 to 31. `d` and `dmin` are half-precision numbers of the super-block.

Every encoder works in three steps. A first search finds the best real-valued grid of every sub-block: candidate grids
give codes, and the codes' least-squares line is scored in closed form from three sums. Then `d` and `dmin` are fixed by
the largest sub-block. A second search finds the integers of the sub-block around what the first one found. Arrays lie
as [value, sub-block], so that every sum over a sub-block adds whole vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

BLOCK = 256
BLOCK_BYTES = {"q4_k": 144, "q5_k": 176, "q6_k": 210}
SLICE = 256  # super-blocks at a time: arrays of 256 KiB stay in a core's second-level cache
LARGEST_HALF = 65504.0
ROUNDING = np.float32(1.000002)  # a later candidate has to explain this much more: equal ones give equal scales

# Candidate grids of the first search: their steps, in units of range / highest code, and the shifts of their middles,
# in steps. First the plain grid, since weights that were quantised before lie on it; then those that a greedy choice
# among 432 adds, each the one that lowers the mean error of 3,000 blocks of normal noise most.
GRIDS = {
    15: ((1.0, 0.98, 0.98, 1.05, 0.96, 1.06, 0.99, 0.98), (0.0, 0.25, -0.25, -0.55, -0.05, -0.35, 0.15, 0.35)),
    31: ((1.0, 1.02, 0.99, 0.99, 1.06, 1.03, 1.04, 1.0), (0.0, -0.55, -0.25, 0.25, -0.05, -0.35, 0.35, 0.15)),
}
# The codes, negated, of the sub-block's largest magnitude that the search for Q6_K tries; greed picks the integers too.
PEAKS = (32, 31, 30, 29, 28, 27, 26, 25)
NEIGHBOURS = (0, -1, 1)  # scales of the second search, around the first one's: more gain less than 0.1 %


def quantize(rows: Floats, kind: str) -> Bytes:
    """Rows [n, k] of `kind` "q4_k", "q5_k" or "q6_k" as bytes [n, bytes of a row].

    Rows in C order are read a slice at a time: a few MB of memory beside the result. Deterministic, and a super-block's
    bytes depend on nothing but its own values. The squared error is what is made small, unweighted. Raises ValueError
    for another kind, a k that is no multiple of 256, NaN, infinity, and magnitudes beyond what half-precision
    super-block scales reach (4.1e6 for Q4_K and Q5_K, 2.6e8 for Q6_K).
    """
    if kind not in BLOCK_BYTES:
        raise ValueError(f"{kind}: no K-quant known here; one of {', '.join(BLOCK_BYTES)}")
    if rows.ndim != 2 or rows.shape[1] % BLOCK:
        raise ValueError(f"{kind} needs rows whose length is a multiple of {BLOCK}, not an array of shape {rows.shape}")
    blocks = rows.reshape(-1, BLOCK)
    encoded = np.empty((len(blocks), BLOCK_BYTES[kind]), np.uint8)
    for start in range(0, len(blocks), SLICE):
        part = blocks[start : start + SLICE]
        done = _signed(part) if kind == "q6_k" else _affine(part, 15 if kind == "q4_k" else 31)
        encoded[start : start + SLICE] = done
    return encoded.reshape(len(rows), rows.shape[1] // BLOCK * BLOCK_BYTES[kind])


def _columns(part: Floats, size: int, limit: float) -> tuple[Floats, Floats, Floats]:
    """A copy of the values as [size, sub-blocks], every sub-block's lowest and highest value."""
    values = np.array(part.reshape(-1, size).T, np.float32, order="C")
    low, high = values.min(0), values.max(0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("NaN or infinity among the weights; such numbers have no K-quant")
    if max(high.max(), -low.min()) > limit:
        raise ValueError(f"a value beyond {limit:.2g}, the range of this K-quant; --type f32 holds it")
    return values, low, high


def _half(largest: Floats) -> Floats:
    """The nearest half-precision numbers, as float32; the next larger where the top integer would have to be cut."""
    half = np.minimum(largest, LARGEST_HALF).astype(np.float16)
    half = np.where(half < np.float32(127 / 127.5) * largest, np.nextafter(half, np.float16(LARGEST_HALF)), half)
    return half.astype(np.float32)


def _inverse(number: Floats) -> Floats:
    """1 / number, and 0 for (almost) 0."""
    return np.divide(1, number, out=np.zeros_like(number), where=abs(number) > 1e-30)


def _not_tiny(size: Floats, blocks: int) -> Floats:
    """Sizes of sub-blocks, those without weight beside the largest of their super-block replaced by it, or by 1."""
    largest = np.repeat(abs(size).reshape(-1, blocks).max(1), blocks)
    return np.where(abs(size) > 1e-5 * largest + 1e-13, size, np.where(largest > 1e-13, largest, np.float32(1)))


def _code(values: Floats, factor: Floats | np.float32, offset: Floats | np.float32, top: int, codes: Floats) -> None:
    """Writes (values + offset) · factor, rounded and clipped to 0 ... top, to `codes`."""
    np.add(values, offset, out=codes)
    codes *= factor
    np.rint(codes, out=codes)
    np.clip(codes, 0, top, out=codes)


def _dot(a: Floats, b: Floats) -> Floats:
    return np.einsum("ij,ij->j", a, b)


def _affine(part: Floats, top: int) -> Bytes:
    """Super-blocks [n, 256] as Q4_K (top 15) or Q5_K (top 31) bytes."""
    values, low, high = _columns(part, 32, LARGEST_HALF * 63)
    # Minima only reach below zero. A super-block that lies above zero is encoded upside down, with negative d and dmin.
    above, below = (np.maximum(each, 0).reshape(-1, 8).sum(1) for each in (low, -high))
    sign = np.where(above > below, np.float32(-1), np.float32(1))
    if (sign < 0).any():
        turn = np.repeat(sign, 8)
        values *= turn
        low, high = np.where(turn < 0, -high, low), np.where(turn < 0, -low, high)

    # In units of the plain grid's step and from the middle of the range, so that candidates are the same for all.
    low = np.minimum(low, 0)
    unit = _not_tiny((high - low) / np.float32(top), 8)
    middle = (high + low) / 2
    values -= middle
    values /= unit
    total = values.sum(0)
    codes = np.empty_like(values)

    def line() -> tuple[Floats, Floats, Floats]:
        """The codes' least-squares step and offset, and the squares they explain."""
        ones, squares, products = codes.sum(0), _dot(codes, codes), _dot(codes, values)
        covariance = 32 * products - ones * total
        step = covariance / np.maximum(32 * squares - ones * ones, 1)
        return step, (total - step * ones) / 32, covariance * step

    explained = np.full_like(total, -1)
    step, offset = np.zeros_like(total), np.zeros_like(total)
    for width, shift in zip(*GRIDS[top], strict=True):
        _code(values, np.float32(1 / width), np.float32(width * (top / 2 + shift)), top, codes)
        new_step, new_offset, new_explained = line()
        better = new_explained > explained * ROUNDING
        for old, new in ((step, new_step), (offset, new_offset), (explained, new_explained)):
            np.copyto(old, new, where=better)
    _code(values, _inverse(step), -offset, top, codes)
    step, offset, _ = line()

    steps, minima = np.maximum(step * unit, 0), np.maximum(-offset * unit - middle, 0)
    d, dmin = (_half(each.reshape(-1, 8).max(1) / np.float32(63)) for each in (steps, minima))
    each_d, each_dmin = (np.repeat(each, 8) for each in (d, dmin))
    real_scale, real_minimum = steps * _inverse(each_d), minima * _inverse(each_dmin)
    d_units, dmin_units, middle_units = each_d / unit, each_dmin / unit, middle / unit
    inverse_dmin = _inverse(dmin_units)

    error = np.full_like(total, np.inf)
    scale, minimum = np.zeros_like(total), np.zeros_like(total)
    for neighbour in NEIGHBOURS:
        new_scale = (np.rint(real_scale) + np.float32(neighbour)).clip(0, 63)
        new_step = new_scale * d_units
        # The grid keeps its middle where the first search left it.
        drift = (new_scale - real_scale) * d_units * inverse_dmin * np.float32(top / 2)
        new_minimum = np.rint(real_minimum + drift).clip(0, 63)
        _code(values, _inverse(new_step), new_minimum * dmin_units + middle_units, top, codes)
        ones, squares, products = codes.sum(0), _dot(codes, codes), _dot(codes, values)
        new_minimum = np.rint(((new_step * ones - total) / 32 - middle_units) * inverse_dmin).clip(0, 63)
        new_offset = -new_minimum * dmin_units - middle_units
        new_error = new_step * (new_step * squares + 2 * (new_offset * ones - products))
        new_error += new_offset * (32 * new_offset - 2 * total)
        better = new_error < error
        for old, new in ((scale, new_scale), (minimum, new_minimum), (error, new_error)):
            np.copyto(old, new, where=better)
    _code(values, _inverse(scale * d_units), minimum * dmin_units + middle_units, top, codes)

    halves = np.stack([d * sign, dmin * sign], 1).astype("<f2").view(np.uint8)
    scale_bits, minimum_bits = (each.astype(np.uint8).reshape(-1, 8) for each in (scale, minimum))
    return _pack_affine(halves, scale_bits, minimum_bits, codes, top)


def _pack_affine(halves: Bytes, scale: Bytes, minimum: Bytes, codes: Floats, top: int) -> Bytes:
    """Bytes of Q4_K or Q5_K: d, dmin, 12 of scales and minima, (in Q5_K 32 of fifth bits,) 128 of four bits each."""
    first, last = slice(0, 4), slice(4, 8)
    scales = [
        scale[:, first] | scale[:, last] >> 4 << 6,
        minimum[:, first] | minimum[:, last] >> 4 << 6,
        scale[:, last] & 15 | (minimum[:, last] & 15) << 4,
    ]
    code = codes.T.astype(np.uint8).reshape(-1, 8, 32)
    low = code & 15
    packed = (low[:, 0::2] | low[:, 1::2] << 4).reshape(-1, 128)
    fifth = [] if top == 15 else [np.packbits(code >> 4, 1, "little").reshape(-1, 32)]
    return np.concatenate([halves, *scales, *fifth, packed], 1)


def _signed(part: Floats) -> Bytes:
    """Super-blocks [n, 256] as Q6_K bytes: 128 of 4-bit codes, 64 of the upper two bits, 16 scales, d."""
    values, low, high = _columns(part, 16, LARGEST_HALF * 127 * 31)
    # In units of the value of the largest magnitude, which the candidates put on code -32, -31, ...
    peak = _not_tiny(np.where(high > -low, high, low), 16)
    values /= peak
    codes = np.empty_like(values)
    explained = np.full_like(peak, -1)
    step = np.zeros_like(peak)
    for peak_code in PEAKS:
        _code(values, np.float32(-peak_code), np.float32(-32 / peak_code), 63, codes)
        codes -= 32
        products = _dot(codes, values)
        new_step = products * _inverse(_dot(codes, codes))
        better = products * new_step > explained * ROUNDING
        np.copyto(step, new_step, where=better)
        np.copyto(explained, products * new_step, where=better)

    steps = step * peak
    d = _half(abs(steps).reshape(-1, 16).max(1) / np.float32(127))
    each_d = np.repeat(d, 16)
    real_scale = steps * _inverse(each_d)
    d_units = each_d / peak
    error = np.full_like(peak, np.inf)
    scale = np.zeros_like(peak)
    for neighbour in NEIGHBOURS:
        new_scale = (np.rint(real_scale) + np.float32(neighbour)).clip(-128, 127)
        new_step = new_scale * d_units
        _code(values, _inverse(new_step), 32 * new_step, 63, codes)
        codes -= 32
        new_error = new_step * (new_step * _dot(codes, codes) - 2 * _dot(codes, values))
        better = new_error < error
        np.copyto(scale, new_scale, where=better)
        np.copyto(error, new_error, where=better)
    new_step = scale * d_units
    _code(values, _inverse(new_step), 32 * new_step, 63, codes)

    code = codes.T.astype(np.uint8).reshape(-1, 2, 4, 32)
    low4 = code & 15
    upper = code >> 4
    return np.concatenate(
        [
            (low4[:, :, :2] | low4[:, :, 2:] << 4).reshape(-1, 128),
            (upper[:, :, 0] | upper[:, :, 1] << 2 | upper[:, :, 2] << 4 | upper[:, :, 3] << 6).reshape(-1, 64),
            scale.astype(np.int8).view(np.uint8).reshape(-1, 16),
            d[:, None].astype("<f2").view(np.uint8),
        ],
        1,
    )
