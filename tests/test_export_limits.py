"""export: what cannot be written is refused by name, and what a reader would miss is told."""

import json
import math
import shutil

import pytest
from exporting import QUANTISED, ROPE, change, metadata, model, stored
from running import bad, good, run

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

from vtools.models.published_templates import SOURCES  # noqa: E402


def test_what_cannot_be_exported_is_one_line_that_says_why(byte_level, tmp_path):
    def broken(name, **config):
        folder = shutil.copytree(byte_level, tmp_path / name)
        change(folder, **config)
        return folder

    out = tmp_path / "out.gguf"
    assert "'gemma2'" in bad("export", broken("gemma", model_type="gemma2"), "-o", out)
    assert "'longrope'" in bad(
        "export", broken("long", rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "-o", out
    )
    assert "'dynamic'" in bad(
        "export", broken("dynamic", rope_scaling={"type": "dynamic", "factor": 2}, rope_parameters=None), "-o", out
    )
    yarn = {"rope_type": "yarn", "factor": 2, "rope_theta": 1e4, "beta_slow": 2}
    assert "beta_slow 2" in bad("export", broken("yarn", rope_parameters=yarn), "-o", out)
    assert "no hidden_size" in bad("export", broken("keys", hidden_size=None), "-o", out)
    llama3 = {**ROPE["llama3"], "rope_theta": 1e4}
    assert "'llama3'" in bad("export", broken("qwen2", model_type="qwen2", rope_parameters=llama3), "-o", out)
    for context in (1 << 33, -1):
        error = bad("export", broken(f"context{context}", max_position_embeddings=context), "-o", out)
        assert f"context_length {context}; GGUF" in error
    assert "hidden_act" in bad("export", broken("act", hidden_act="gelu"), "-o", out)
    assert "config.json asks for [401, 64]" in bad("export", broken("rows", vocab_size=401), "-o", out)
    assert "no tensor model.layers.2" in bad("export", broken("layers", num_hidden_layers=3), "-o", out)
    assert "layers.1." in bad("export", broken("fewer", num_hidden_layers=1), "-o", out)
    folder = broken("tokens")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in bad("export", folder, "-o", out)
    folder = broken("more")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    token = {
        "id": 318,
        "content": "<new>",
        "special": True,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    (folder / "tokenizer.json").write_text(
        json.dumps({**tokenizer, "added_tokens": [*tokenizer["added_tokens"], token]})
    )
    assert "ids up to 318, but the embedding only 318 rows" in bad("export", folder, "-o", out)
    folder = broken("merges")
    without = {**tokenizer, "model": {**tokenizer["model"], "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(without))
    assert "no merges" in bad("export", folder, "-o", out)
    folder = broken("split")
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "llama-bpe" in bad("export", folder, "-o", out)
    assert "--to safetensors" in bad("export", byte_level, "--dtype", "fp16", "-o", out, code=2)
    assert "no such template" in bad("export", byte_level, "--template", "none", "-o", out)
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob(".*"))


def test_a_tensor_that_is_not_known_is_named_and_old_buffers_are_passed_over(byte_level, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(byte_level, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**weights, buffer: torch.ones(8)}, folder / "model.safetensors")
    assert len(good("export", folder, "-o", tmp_path / "a.gguf")) == len(weights) + 1
    save_file({**weights, "model.layers.0.mlp.experts.weight": torch.ones(8)}, folder / "model.safetensors")
    assert "model.layers.0.mlp.experts.weight" in bad("export", folder, "-o", tmp_path / "b.gguf")


def test_a_base_model_is_exported_without_a_template_and_that_is_said(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    change(folder, "tokenizer_config.json", chat_template=None)
    done = run("export", folder, "-o", tmp_path / "out.gguf")
    assert done.returncode == 0 and "no chat template" in done.errors
    assert "tokenizer.chat_template" not in metadata(tmp_path / "out.gguf")
    good("export", folder, "--template", "chatml", "-o", tmp_path / "chatml.gguf")
    assert metadata(tmp_path / "chatml.gguf")["tokenizer.chat_template"] == SOURCES["chatml"]


def test_attention_that_llama_cpp_does_not_limit_is_told(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    change(folder, model_type="mistral", sliding_window=64)
    done = run("export", folder, "-o", tmp_path / "out.gguf")
    assert done.returncode == 0 and "64 tokens back" in done.errors


def test_the_token_that_ends_an_answer_is_told_where_it_is_not_the_end_of_text(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    change(folder, "tokenizer_config.json", eos_token="<|endoftext|>")
    good("export", folder, "-o", tmp_path / "out.gguf")
    keys = metadata(tmp_path / "out.gguf")
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]) == (0, 2)


def test_a_value_that_f16_cannot_hold_is_refused_by_name(byte_level, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(byte_level, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e5
    save_file(weights, folder / "model.safetensors")
    assert "model.layers.1.mlp.up_proj.weight" in bad("export", folder, "-o", tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf"))
    good("export", folder, "--type", "bf16", "-o", tmp_path / "out.gguf")
    resharding = ("--to", "safetensors", "-o", tmp_path / "folder")
    assert "model.layers.1.mlp.up_proj.weight" in bad("export", folder, "--dtype", "fp16", *resharding)
    assert not (tmp_path / "folder").exists()
    good("export", folder, "--dtype", "bf16", *resharding)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = math.nan
    save_file(weights, folder / "model.safetensors")
    for kind in ("f16", "f32", "q8_0", "q4_k_m"):
        error = bad("export", folder, "--type", kind, "-o", tmp_path / "more.gguf")
        assert "model.layers.1.mlp.up_proj.weight: NaN or infinity in its" in error


@pytest.mark.parametrize(
    "kind, largest", [*((kind, 1e7) for kind in (*QUANTISED, "q4_k_m")), ("bf16", 3.4e38), ("f32", 1e300)]
)
def test_a_value_that_a_type_cannot_hold_is_refused_by_name_and_one_too_small_is_no_noise(
    byte_level, tmp_path, kind, largest
):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(byte_level, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].double()
    weights[name][3] = 1e-44  # the scale of its blocks is 0, and 1 / scale infinite
    save_file(weights, folder / "model.safetensors")
    done = run("export", folder, "--type", kind, "-o", tmp_path / "small.gguf")
    assert done.returncode == 0 and len(done.errors.splitlines()) == 1, done.errors
    found = stored(tmp_path / "small.gguf")["blk.1.ffn_up.weight"]
    assert abs(gguf.quants.dequantize(found.data, found.tensor_type)[3]).max() < 1e-30
    weights[name][3, 4] = largest
    save_file(weights, folder / "model.safetensors")
    assert f"{name}: a value beyond the range of " in bad("export", folder, "--type", kind, "-o", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_an_output_matrix_that_differs_from_the_embedding_is_kept_whatever_config_json_says(byte_level, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(byte_level, tmp_path / "model")
    change(folder, tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    almost = embedding.clone()
    almost[-1, -1] += 1
    for number, (head, kept) in enumerate(((weights["lm_head.weight"], True), (almost, True), (embedding, False))):
        save_file({**weights, "lm_head.weight": head.clone()}, folder / "model.safetensors")
        good("export", folder, "--type", "f32", "-o", tmp_path / f"{number}.gguf")
        found = stored(tmp_path / f"{number}.gguf")
        assert ("output.weight" in found) == kept
        assert not kept or np.array_equal(found["output.weight"].data, head.numpy())


def test_biases_that_llama_cpp_has_no_place_for_are_refused_by_name(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    model(folder, vocab_size=318, kind="Qwen3", head_dim=32, attention_bias=True)
    assert "self_attn.k_proj.bias does not belong to a qwen3 model" in bad(
        "export", folder, "-o", tmp_path / "out.gguf"
    )
    model(folder, vocab_size=318, attention_bias=True)
    change(folder, model_type="qwen2")
    assert "self_attn.o_proj.bias does not belong to a qwen2 model" in bad(
        "export", folder, "-o", tmp_path / "out.gguf"
    )
