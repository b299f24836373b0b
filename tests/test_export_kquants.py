"""The K-quant encoders: their bytes are read back by the gguf package, and by llama.cpp where xllamacpp brings it."""

from __future__ import annotations

import ctypes
import itertools
import tracemalloc
import warnings
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
quants = pytest.importorskip("gguf.quants")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vtools.export import kquants  # noqa: E402
from vtools.export.tensor_names import mixed  # noqa: E402

KINDS = ("q4_k", "q5_k", "q6_k")
TOPS = {"q4_k": 15, "q5_k": 31}


def noise(shape, seed=0, shape_of="normal", size=0.02):
    draw = np.random.default_rng(seed)
    sample = {
        "normal": lambda: draw.standard_normal(shape),
        "heavy": lambda: draw.standard_t(4, shape),
        "uniform": lambda: draw.uniform(-1, 1, shape),
    }[shape_of]()
    return (sample * size).astype(np.float32)


def decode(encoded, kind):
    return quants.dequantize(encoded, gguf.GGMLQuantizationType[kind.upper()])


def error(rows, kind):
    """Root mean squared error over the standard deviation."""
    return root(decode(kquants.quantize(rows, kind), kind) - rows) / rows.std()


def root(difference):
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


def plain(rows, kind):
    """The values after an encoder that takes every grid from the lowest and highest value."""
    if kind == "q6_k":
        block = rows.reshape(-1, 16, 16)
        step = abs(block).max(-1, keepdims=True) / 31
        d = (step.max(1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
        step = np.maximum(d * np.rint(step / np.maximum(d, 1e-30)), 1e-30)
        return (np.rint(block / step).clip(-32, 31) * step).reshape(rows.shape)
    block = rows.reshape(-1, 8, 32)
    least = np.maximum(-block.min(-1, keepdims=True), 0)
    step = (block.max(-1, keepdims=True) + least) / TOPS[kind]
    d, dmin = ((each.max(1, keepdims=True) / 63).astype(np.float16).astype(np.float32) for each in (step, least))
    step, least = (each * np.rint(size / np.maximum(each, 1e-30)) for each, size in ((d, step), (dmin, least)))
    step = np.maximum(step, 1e-30)
    return (np.rint((block + least) / step).clip(0, TOPS[kind]) * step - least).reshape(rows.shape)


@pytest.mark.parametrize(("kind", "bar"), [("q4_k", 0.0703), ("q5_k", 0.0350), ("q6_k", 0.0168)])
def test_normal_weights_come_back_within_the_error_the_best_encoders_reach(kind, bar):
    assert error(noise((128, 2048)), kind) < bar


@pytest.mark.parametrize("shape_of", ["normal", "heavy", "uniform"])
@pytest.mark.parametrize(("kind", "ratio"), [("q4_k", 0.92), ("q5_k", 0.93), ("q6_k", 0.90)])
def test_the_search_beats_grids_from_the_lowest_and_highest_value(kind, ratio, shape_of):
    rows = noise((64, 1024), 1, shape_of)
    assert error(rows, kind) < ratio * root(plain(rows, kind) - rows) / rows.std()


@pytest.mark.parametrize("kind", ["q4_k", "q5_k"])
def test_no_scales_and_minima_of_the_format_are_more_than_4_percent_better(kind):
    rows = noise((4, 256), 2)
    encoded = kquants.quantize(rows, kind)
    best = []
    for row, (d, dmin) in zip(rows, encoded[:, :4].view(np.float16).astype(np.float32), strict=True):
        sums = []
        for d_factor in (0.94, 0.97, 1, 1.03):
            for dmin_factor in (0.94, 0.97, 1, 1.03):
                steps = np.arange(1, 64).reshape(-1, 1, 1) * np.float32(np.float16(d * d_factor))
                minima = np.arange(64).reshape(1, -1, 1) * np.float32(np.float16(dmin * dmin_factor))
                each = []
                for block in row.reshape(8, 1, 1, 32):
                    codes = np.rint((block + minima) / steps).clip(0, TOPS[kind])
                    each.append(np.square(codes * steps - minima - block).sum(-1).min())
                sums.append(sum(each))
        best.append(min(sums))
    assert root(decode(encoded, kind) - rows) < 1.04 * np.sqrt(np.mean(best) / 256)


def test_no_scales_of_q6_k_are_more_than_3_percent_better():
    rows = noise((32, 256), 2)
    encoded = kquants.quantize(rows, "q6_k")
    best = []
    for row, d in zip(rows, encoded[:, -2:].view(np.float16).astype(np.float32), strict=True):
        sums = []
        for factor in np.linspace(0.9, 1.1, 21):
            steps = np.float32(np.float16(d * factor)) * np.arange(1, 129).reshape(1, -1, 1)
            steps = np.concatenate([steps, -steps], 1)
            codes = np.rint(row.reshape(16, 1, 16) / steps).clip(-32, 31)
            sums.append(np.square(codes * steps - row.reshape(16, 1, 16)).sum(-1).min(1).sum())
        best.append(min(sums))
    assert root(decode(encoded, "q6_k") - rows) < 1.03 * np.sqrt(np.mean(best) / 256)


@pytest.fixture(scope="module")
def llama():
    """llama.cpp's own quantiser, in the shared object of xllamacpp."""
    package = pytest.importorskip("xllamacpp", reason="llama.cpp's own quantiser is absent (pip install xllamacpp)")
    for path in sorted(Path(package.__file__).parent.glob("*.so")):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "ggml_quantize_chunk") and hasattr(library, "dequantize_row_q4_K"):
            library.ggml_quantize_chunk.restype = ctypes.c_size_t
            library.ggml_quantize_chunk.argtypes = (
                [ctypes.c_int] + [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
            )
            return library
    pytest.skip("this xllamacpp does not export llama.cpp's quantiser")


@pytest.mark.parametrize("shape_of", ["normal", "heavy", "uniform"])
@pytest.mark.parametrize(("kind", "ratio"), [("q4_k", 0.99), ("q5_k", 0.975), ("q6_k", 0.96)])
def test_the_error_is_smaller_than_that_of_llama_cpps_own_quantiser(llama, kind, ratio, shape_of):
    rows = noise((64, 1024), 3, shape_of)
    theirs = np.zeros((64, 4 * kquants.BLOCK_BYTES[kind]), np.uint8)
    number = int(gguf.GGMLQuantizationType[kind.upper()])
    assert llama.ggml_quantize_chunk(number, rows.ctypes.data, theirs.ctypes.data, 0, 64, 1024, None) == theirs.nbytes
    assert error(rows, kind) < ratio * root(decode(theirs, kind) - rows) / rows.std()


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_reads_the_bytes_as_the_gguf_package_does(llama, kind):
    rows = np.concatenate([noise((8, 512), 4), abs(noise((8, 512), 5)) + 1])
    encoded = kquants.quantize(rows, kind)
    read = np.zeros_like(rows)
    function = getattr(llama, f"dequantize_row_{kind[:2]}_K")
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    function(encoded.ctypes.data, read.ctypes.data, rows.size)
    assert root(read - rows) < 0.1 * rows.std()
    np.testing.assert_allclose(read, decode(encoded, kind), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_come_back_as_zeros(kind):
    assert not decode(kquants.quantize(np.zeros((3, 512), np.float32), kind), kind).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.37, -0.37, 1e-5, -1e-5, 900.0, -900.0])
def test_a_constant_row_comes_back_within_a_thousandth(kind, value):
    rows = np.full((2, 256), value, np.float32)
    np.testing.assert_allclose(
        decode(kquants.quantize(rows, kind), kind), rows, rtol=1e-3 if abs(value) > 1e-3 else 0.01
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outlier", [3.0, -3.0])
def test_an_outlier_costs_the_other_sub_blocks_little(kind, outlier):
    """Beside a value of 150 deviations the shared 6-bit scale is coarse, but no sub-block is lost."""
    rows = noise((16, 256), 6)
    rows[:, 100] = outlier
    back = decode(kquants.quantize(rows, kind), kind)
    np.testing.assert_allclose(back[:, 100], outlier, rtol=0.01)
    size = 16 if kind == "q6_k" else 32
    apart = np.arange(256) // size != 100 // size
    assert root(back[:, apart] - rows[:, apart]) < {"q4_k": 0.12, "q5_k": 0.07, "q6_k": 0.04}[kind] * 0.02


@pytest.mark.parametrize("kind", ["q4_k", "q5_k"])
@pytest.mark.parametrize("side", [1, -1])
def test_weights_all_on_one_side_of_zero_are_measured_from_their_own_lowest_value(kind, side):
    rows = side * (1 + noise((32, 256), 7))
    assert error(rows, kind) < 0.12


@pytest.mark.parametrize("kind", ["q4_k", "q5_k"])
def test_weights_that_lie_on_the_format_s_grid_stay_there(kind):
    first = decode(kquants.quantize(noise((64, 512), 8), kind), kind)
    assert error(first, kind) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", [(0, 1), (0, 0.631), (-0.3, 0.1)])
def test_weights_of_two_values_come_back_within_a_thousandth(kind, pair):
    """Many grids hold both values: all sub-blocks take the same, whose scale is then exact."""
    rows = np.random.default_rng(14).choice(np.array(pair, np.float32), (64, 256))
    np.testing.assert_allclose(decode(kquants.quantize(rows, kind), kind), rows, atol=1e-3 * abs(rows).max(), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(power=st.integers(-2, 10), seed=st.integers(0, 1000))
def test_weights_twice_as_large_have_the_same_codes(kind, power, seed):
    rows = noise((2, 512), seed, size=1)
    np.testing.assert_array_equal(
        decode(kquants.quantize(rows * np.float32(2.0**power), kind), kind),
        decode(kquants.quantize(rows, kind), kind) * np.float32(2.0**power),
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 149), max_size=4))
def test_the_bytes_of_a_row_do_not_depend_on_the_rows_beside_it(kind, cuts):
    rows = noise((150, 768), 9, "heavy")
    before = rows.copy()
    whole = kquants.quantize(rows, kind)
    assert np.array_equal(rows, before)
    edges = [0, *sorted(cuts), 150]
    parts = [kquants.quantize(rows[a:b], kind) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(kquants.quantize(np.asfortranarray(rows), kind), whole)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_finite_weights_come_back_about_as_well_as_from_plain_grids(kind, data):
    numbers = st.one_of(
        st.just(0.0),
        st.floats(-1, 1, width=32),
        st.floats(-(2.0**-20), 2.0**-20, width=32),
        st.floats(-100, 100, width=32),
    )
    few = data.draw(st.lists(numbers, min_size=1, max_size=12))
    rows = np.random.default_rng(data.draw(st.integers(0, 99))).choice(np.array(few, np.float32), (1, 256))
    rows *= np.float32(10.0 ** data.draw(st.integers(-2, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = decode(kquants.quantize(rows, kind), kind)
    assert np.isfinite(back).all()
    # Few values may happen to lie on the plain grids; half a unit of the smallest d is 2 ** -25.
    chance = 0.01 * abs(rows).max() + 2.0**-25 * (127 * 32 if kind == "q6_k" else 63 * TOPS[kind])
    assert root(back - rows) <= root(plain(rows, kind) - rows) + chance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1e-12, 1e-8, 1e-6, 1e3, 1e6, 4e6])
def test_weights_too_small_for_the_scales_or_as_large_as_they_reach_give_finite_numbers_of_the_same_sign(kind, size):
    rows = noise((4, 512), 10, "uniform", 1.0) * np.float32(size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = decode(kquants.quantize(rows, kind), kind)
    assert np.isfinite(back).all()
    assert abs(back).max() <= 1.05 * abs(rows).max() + 1e-7
    assert (back * np.sign(rows) >= -0.1 * abs(rows).max() - 1e-7).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_beyond_what_the_scales_reach_is_refused(kind, sign):
    rows = noise((300, 256))
    rows[299, 255] = sign * (3e8 if kind == "q6_k" else 5e6)
    with pytest.raises(ValueError, match="range"):
        kquants.quantize(rows, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_sub_blocks_of_wildly_different_sizes_give_finite_numbers(kind):
    sizes = 10.0 ** np.random.default_rng(12).integers(-40, 6, (200, 16, 1))
    shifts = 10.0 ** np.random.default_rng(13).integers(-40, 6, (200, 16, 1))
    rows = (noise((200, 16, 16), 12, size=1) * sizes - shifts).astype(np.float32).reshape(200, 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = decode(kquants.quantize(rows, kind), kind)
    assert np.isfinite(back).all()
    assert (abs(back - rows).max(1) <= 0.1 * abs(rows).max(1) + 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused(kind, bad):
    rows = noise((300, 256))
    rows[299, 255] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        kquants.quantize(rows, kind)


def test_other_kinds_and_rows_that_blocks_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="q3_k"):
        kquants.quantize(noise((2, 256)), "q3_k")
    with pytest.raises(ValueError, match="multiple of 256"):
        kquants.quantize(noise((2, 576)), "q4_k")


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_rows(kind):
    rows = noise((4096, 1024), 11)
    kquants.quantize(rows[:64], kind)
    tracemalloc.start()
    encoded = kquants.quantize(rows, kind)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert encoded.shape == (4096, 4 * kquants.BLOCK_BYTES[kind])
    assert peak - encoded.nbytes < 8_000_000


def mix(name, shape, layers, tied=False, wanted="q4_k_m"):
    """The types of a layer's tensor, as {type: layers}; of another tensor its type."""
    if "{}" not in name:
        return mixed(wanted, name, shape, layers, tied)
    types = {}
    for layer in range(layers):
        types.setdefault(mixed(wanted, name.format(layer), shape, layers, tied), []).append(layer)
    return types


def test_the_mix_of_a_tied_model_of_30_layers_and_rows_of_576():
    more = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]
    less = [layer for layer in range(30) if layer not in more]
    assert mix("token_embd.weight", (49152, 576), 30, tied=True) == "q8_0"
    assert mix("blk.{}.attn_v.weight", (192, 576), 30) == {"q8_0": more, "q5_0": less}
    assert mix("blk.{}.ffn_down.weight", (576, 1536), 30) == {"q6_k": more, "q4_k": less}
    for name in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert mix(f"blk.{{}}.{name}.weight", (576, 576), 30) == {"q5_0": list(range(30))}


def test_the_mix_of_an_untied_model_of_32_layers_and_rows_of_4096():
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    less = [layer for layer in range(32) if layer not in more]
    assert mix("token_embd.weight", (32000, 4096), 32) == "q4_k"
    assert mix("token_embd.weight", (32000, 4096), 32, tied=True) == "q6_k"
    assert mix("output.weight", (32000, 4096), 32) == "q6_k"
    assert mix("blk.{}.attn_v.weight", (4096, 4096), 32) == {"q6_k": more, "q4_k": less}
    assert mix("blk.{}.ffn_down.weight", (4096, 11008), 32) == {"q6_k": more, "q4_k": less}
    for name in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert mix(f"blk.{{}}.{name}.weight", (4096, 4096), 32) == {"q4_k": list(range(32))}
    assert mix("output.weight", (32000, 100), 32) == "f16"


def test_the_mix_of_80_layers_spends_more_on_40_of_them():
    types = mix("blk.{}.ffn_down.weight", (8192, 28672), 80)
    assert types["q6_k"] == [*range(10), *range(12, 70, 3), *range(70, 80)]
    assert len(types["q4_k"]) == 40


def test_the_mixes_of_more_bits_follow_the_same_rules():
    more, less = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31], [4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 26]  # fmt: skip
    every = list(range(32))
    assert mix("blk.{}.ffn_down.weight", (4096, 11008), 32, wanted="q5_k_m") == {"q6_k": more, "q5_k": less}
    assert mix("blk.{}.attn_q.weight", (4096, 4096), 32, wanted="q5_k_m") == {"q5_k": every}
    assert mix("blk.{}.attn_q.weight", (4096, 576), 32, wanted="q5_k_m") == {"q5_1": every}
    assert mix("blk.{}.attn_q.weight", (4096, 4096), 32, wanted="q6_k") == {"q6_k": every}
    assert mix("token_embd.weight", (32000, 576), 32, wanted="q6_k") == "q8_0"
