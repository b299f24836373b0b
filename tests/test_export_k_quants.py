"""K-quants: llama.cpp's encoder by our hand, read back by the gguf package, and which tensor gets which type."""

from __future__ import annotations

import threading

import pytest
from llama_cpp import needs_llama_cpp

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
quants = pytest.importorskip("gguf.quants")

from vtools.export import blocks, k_quants  # noqa: E402
from vtools.export.tensor_names import mixed  # noqa: E402
from vtools.process import Failure  # noqa: E402

KINDS = ("q4_k", "q5_k", "q6_k")


def noise(shape, seed=0, size=0.02):
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def encode(rows, kind):
    return blocks.encode(np.ascontiguousarray(rows).view(np.uint8).reshape(-1), "F32", rows.shape[1], kind)


def decoded(rows, kind):
    return quants.dequantize(encode(rows, kind).reshape(len(rows), -1), gguf.GGMLQuantizationType[kind.upper()])


@needs_llama_cpp
@pytest.mark.parametrize(("kind", "bar"), [("q4_k", 0.073), ("q5_k", 0.037), ("q6_k", 0.0185)])
def test_normal_weights_come_back_within_the_error_of_the_format(kind, bar):
    rows = noise((128, 2048))
    assert np.sqrt(np.mean(np.square(decoded(rows, kind) - rows))) < bar * rows.std()


@needs_llama_cpp
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_constants_and_numbers_too_small_for_a_scale_come_back_as_what_they_are(kind):
    rows = np.stack([np.full(256, value, np.float32) for value in (0, 0.37, -0.37, 900, 1e-45, 1e-20, 1e-8)])
    np.testing.assert_allclose(decoded(rows, kind), rows, rtol=0.01, atol=1e-7)


@needs_llama_cpp
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_encoded_by_themselves_whoever_else_encodes_at_the_time(kind):
    rows, made = noise((96, 768), 9), {}
    whole = encode(rows, kind).reshape(96, -1)

    def work(start):
        made[start] = encode(rows[start : start + 16], kind).reshape(16, -1)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 96, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(np.concatenate([made[start] for start in sorted(made)]), whole)


@needs_llama_cpp
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.99, 1.01, 1e3, 1e13, 1e30])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_that_the_scales_cannot_hold_is_refused_and_one_they_can_comes_back(kind, size, sign):
    rows = noise((300, 256))
    rows[299, 255] = sign * size * blocks.LARGEST[kind]
    if size < 1:
        assert decoded(rows, kind)[299, 255] == pytest.approx(rows[299, 255], rel=0.05)
        return
    with pytest.raises(ValueError, match=f"a value beyond the range of {kind}; --type f32 holds it"):
        encode(rows, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused(kind, bad):
    rows = noise((300, 256))
    rows[299, 255] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode(rows, kind)


def test_without_llama_cpp_the_error_says_what_to_install_and_what_needs_nothing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(k_quants.importlib.util, "find_spec", lambda name: None)
    k_quants._function.cache_clear()
    try:
        with pytest.raises(Failure, match=r"pip install 'vtools-chat\[llama-cpp\]'.*llama-quantize.*--type q8_0"):
            k_quants.program()
    finally:
        k_quants._function.cache_clear()


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
