"""export: llama.cpp computes from a file what transformers computes from the model."""

import ctypes
import json
import math
import shutil

import llama_cpp
import pytest
from exporting import CHATS, PROMPTS, ROPE, TEXTS, assert_equal_everywhere, change, compare, model, stored
from llama_cpp import needs_llama_cpp
from running import good

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from vtools.export import blocks, gguf_file  # noqa: E402
from vtools.models.reference import model_folder  # noqa: E402


@pytest.fixture(scope="session")
def real(smollm2):
    """The real small model as a folder in bf16."""
    return model_folder(smollm2)


@needs_llama_cpp
def test_llama_cpp_continues_a_sentencepiece_model_as_transformers_does(sentencepiece_model, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentencepiece_model)
    good("export", sentencepiece_model, "-o", tmp_path / "f16.gguf")
    judged, equal, worst = compare(sentencepiece_model, tmp_path / "f16.gguf", tokenizer(list(PROMPTS)).input_ids)
    print(f"{equal} of {judged} greedy steps, top-8 log-probabilities within {worst:.4f}")
    assert judged >= 20 and equal == judged
    assert worst < 0.02


@needs_llama_cpp
def test_without_the_interleaved_heads_the_same_comparison_fails(sentencepiece_model, tmp_path, monkeypatch, capsys):
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentencepiece_model)
    monkeypatch.setattr(blocks, "interleave", lambda raw, row, head: raw)
    gguf_file.write(
        sentencepiece_model,
        "model",
        tmp_path / "wrong.gguf",
        kind="f16",
        template=None,
        jobs=1,
        force=False,
        quiet=True,
        dry_run=False,
    )
    prompts = tokenizer(list(PROMPTS)).input_ids
    judged, equal, worst = compare(sentencepiece_model, tmp_path / "wrong.gguf", prompts)
    print(f"{equal} of {judged} greedy steps, top-8 log-probabilities within {worst:.4f}")
    assert equal < judged and worst > 0.2


@needs_llama_cpp
@pytest.mark.parametrize("rope", ROPE)
def test_llama_cpp_turns_heads_as_the_rope_scaling_asks(sentencepiece_model, tmp_path, rope):
    folder = shutil.copytree(sentencepiece_model, tmp_path / "model")
    model(folder, vocab_size=1001, rope_parameters=ROPE[rope])
    assert_equal_everywhere(folder, tmp_path / "out.gguf")
    # The same settings as transformers 4 wrote them give the same file.
    settings = dict(ROPE[rope])
    theta = settings.pop("rope_theta")
    scaling = {**settings, "type": settings.pop("rope_type")} if rope != "plain" else None
    change(folder, rope_parameters=None, rope_theta=theta, rope_scaling=scaling)
    good("export", folder, "--type", "f32", "-o", tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()


FAMILY = {
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 48},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"kind": "Mistral", "head_dim": 32, "sliding_window": None},
    "qwen2": {"kind": "Qwen2"},
    "qwen3": {"kind": "Qwen3", "head_dim": 32},
}


@needs_llama_cpp
@pytest.mark.parametrize("member", FAMILY)
def test_llama_cpp_computes_every_member_of_the_family_as_transformers_does(sentencepiece_model, tmp_path, member):
    folder = shutil.copytree(sentencepiece_model, tmp_path / "model")
    model(folder, vocab_size=1001, **FAMILY[member])
    assert_equal_everywhere(folder, tmp_path / "out.gguf")


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_llama_cpp_continues_the_real_model_as_transformers_does(real, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(real)
    good("export", real, "-o", tmp_path / "f16.gguf")
    judged, equal, worst = compare(real, tmp_path / "f16.gguf", tokenizer(list(PROMPTS)).input_ids)
    print(f"{equal} of {judged} greedy steps, top-8 log-probabilities within {worst:.4f}")
    assert judged >= 20 and equal == judged
    assert worst < 0.02
    found = llama_cpp.ask(tmp_path / "f16.gguf", texts=TEXTS, chats=CHATS)
    assert found["texts"] == tokenizer(list(TEXTS)).input_ids
    assert found["chats"] == [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in CHATS
    ]


def requantised(ours, whole, out):
    """Our file with every quantised tensor recomputed by llama.cpp's own quantiser."""
    llama = llama_cpp.library()
    llama.ggml_quantize_chunk.restype = ctypes.c_size_t
    llama.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    shutil.copy(ours, out)
    sources = stored(whole)
    with open(out, "r+b") as stream:
        for name, tensor in stored(ours).items():
            if tensor.tensor_type.name in ("F32", "F16"):
                continue
            source = np.ascontiguousarray(sources[name].data, "<f4")
            target = np.empty(int(tensor.n_bytes), np.uint8)
            rows, columns = source.shape
            done = llama.ggml_quantize_chunk(
                int(tensor.tensor_type), source.ctypes.data, target.ctypes.data, 0, rows, columns, None
            )
            assert done == len(target)
            stream.seek(int(tensor.data_offset))
            stream.write(target.tobytes())
    return out


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quantised_files_predict_real_text_nearly_as_well(real, sharegpt, tmp_path):
    """Perplexity by llama.cpp on real conversations, beside that of llama.cpp's own quantiser on the same tensors."""
    with open(sharegpt, encoding="utf-8") as stream:
        start = stream.read(4_000_000)
    decoder, place, texts = json.JSONDecoder(), start.index("{"), []
    while len(texts) < 8:
        record, end = decoder.raw_decode(start, place)
        place = start.index("{", end)
        text = "\n\n".join(turn["value"] for turn in record["conversations"])
        if len(text) > 1500:
            texts.append(text)
    tokenizer = transformers.AutoTokenizer.from_pretrained(real)
    rows = [ids[:128] for ids in tokenizer(texts).input_ids]
    perplexity = {}
    for kind in ("f32", "f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"):
        good("export", real, "--type", kind, "-o", tmp_path / f"{kind}.gguf")
        files = {kind: tmp_path / f"{kind}.gguf"}
        if kind.startswith("q") and kind != "q8_0":
            files[f"{kind} by llama.cpp"] = requantised(files[kind], tmp_path / "f32.gguf", tmp_path / "theirs.gguf")
        for name, file in files.items():
            if name != "f32":
                found = llama_cpp.ask(file, rows=rows)
                perplexity[name] = math.exp(found["nll"] / found["count"])
    print({name: round(value, 3) for name, value in perplexity.items()})
    assert abs(perplexity["q8_0"] / perplexity["f16"] - 1) < 0.01
    for kind in ("q4_0", "q4_k_m", "q5_k_m", "q6_k"):
        assert perplexity[kind] < 1.03 * perplexity[f"{kind} by llama.cpp"]
    assert perplexity["q6_k"] < perplexity["q4_k_m"] < perplexity["q4_0"]
