"""Deltas as FastChat and Alpaca published them: no manifest, pickled shards, added rows, old buffers."""

import json
import os
import random

import pytest

np = pytest.importorskip("numpy")
blake3 = pytest.importorskip("blake3").blake3

import tiny  # noqa: E402
from checkpoints import contents, names, pair, weights, write  # noqa: E402
from hub import Hub  # noqa: E402
from running import bad, good, python, run  # noqa: E402

HIDDEN, WIDE, ROWS, LAYERS = 64, 128, 320, 2


def shapes(rows=ROWS):
    """The tensors of a Llama checkpoint."""
    yield "model.embed_tokens.weight", (rows, HIDDEN)
    for layer in range(LAYERS):
        for name in "qkvo":
            yield f"model.layers.{layer}.self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        yield f"model.layers.{layer}.mlp.gate_proj.weight", (WIDE, HIDDEN)
        yield f"model.layers.{layer}.mlp.up_proj.weight", (WIDE, HIDDEN)
        yield f"model.layers.{layer}.mlp.down_proj.weight", (HIDDEN, WIDE)
        yield f"model.layers.{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (rows, HIDDEN)


def halves(seed, exponent, rows=ROWS):
    """Half-precision tensors from Python's generator alone: normal numbers with three exponents below `exponent`."""
    chance = random.Random(seed)
    tensors = {}
    for name, shape in shapes(rows):
        count = int(np.prod(shape))
        mantissa, high = (np.frombuffer(chance.randbytes(2 * count), "<u2") for _ in "mh")
        words = (mantissa & 0x83FF) | ((exponent - (high % 3).astype("<u2")) << 10).astype("<u2")
        tensors[name] = words.view("<f2").reshape(shape)
    return tensors


def config(rows=ROWS):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE,
        "num_attention_heads": 4, "num_hidden_layers": LAYERS, "vocab_size": rows, "torch_dtype": "float16",
        "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
    }  # fmt: skip


def save(folder, tensors, rows=ROWS):
    """A folder with one safetensors file."""
    kinds = {"float16": "F16", "float32": "F32", "uint16": "BF16"}
    write(folder / "model.safetensors", {name: (kinds[array.dtype.name], array) for name, array in tensors.items()})
    (folder / "config.json").write_text(json.dumps(config(rows)))
    return folder


def save_pickled(folder, tensors, rows=ROWS, buffers=False):
    """A folder as transformers wrote it in 2023: two pickled shards, their index, a buffer in every layer."""
    torch = pytest.importorskip("torch")
    folder.mkdir()
    if buffers:
        tensors = dict(tensors)
        for layer in range(LAYERS):
            buffer = 10000.0 ** -np.arange(0, 1, 2 / 16, dtype="<f4")
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = buffer
    items, index = list(tensors.items()), {}
    for number, group in ((1, items[: len(items) // 2]), (2, items[len(items) // 2 :])):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({key: torch.from_numpy(array.copy()) for key, array in group}, folder / name)
        index |= dict.fromkeys([key for key, _ in group], name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config(rows)))
    return folder


def load(folder):
    """Every tensor of a folder of safetensors files, by the safetensors library."""
    safetensors = pytest.importorskip("safetensors.numpy")
    return {
        name: array
        for file in sorted(folder.glob("*.safetensors"))
        for name, array in safetensors.load_file(file).items()
    }


def digest(tensors):
    hashed = blake3()
    for name, array in sorted(tensors.items()):
        hashed.update(name.encode() + array.tobytes())
    return hashed.hexdigest()


# BLAKE3 of what FastChat 0.2.36's apply_delta made of halves(1, 11) and halves(2, 6), names sorted.
FASTCHAT = "114274f488ea0b097c322322e341d57c1fc6e03a611a4874242580e276cd3e89"


def test_a_published_delta_gives_the_bits_that_fastchat_gave(tmp_path):
    base, delta = save(tmp_path / "base", halves(1, 11)), save(tmp_path / "delta", halves(2, 6))
    done = run("apply-delta", base, delta, tmp_path / "out")
    assert done.returncode == 0 and "neither base nor result could be checked" in done.errors
    assert digest(load(tmp_path / "out")) == FASTCHAT


def test_a_published_delta_gives_the_bits_that_fastchat_gives(tmp_path):
    pytest.importorskip("fastchat")
    base, delta = save(tmp_path / "base", halves(1, 11)), save(tmp_path / "delta", halves(2, 6))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (delta / name).write_bytes((tiny_tokenizer(tmp_path) / name).read_bytes())
    script = "import sys; from fastchat.model.apply_delta import apply_delta; apply_delta(*sys.argv[1:])"
    done = python(script, base, tmp_path / "theirs", delta)
    assert done.returncode == 0, done.errors
    good("apply-delta", base, delta, tmp_path / "ours")
    ours, theirs = load(tmp_path / "ours"), load(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    assert digest(theirs) == FASTCHAT


def tiny_tokenizer(tmp_path):
    if not (tmp_path / "tiny").exists():
        tiny.make(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("pickled", ["base", "delta", "both"])
def test_pickled_shards_with_old_buffers_give_the_same_model_as_safetensors(tmp_path, pickled):
    """The layout of lmsys/vicuna-7b-delta-v1.1: two .bin shards, an index, inv_freq in every layer."""
    base, delta = halves(1, 11), halves(2, 6)
    folders = {}
    for name, tensors in (("base", base), ("delta", delta)):
        if pickled in (name, "both"):
            folders[name] = save_pickled(tmp_path / name, tensors, buffers=True)
        else:
            folders[name] = save(tmp_path / name, tensors)
    *lines, totals = good("apply-delta", folders["base"], folders["delta"], tmp_path / "out")
    assert digest(load(tmp_path / "out")) == FASTCHAT
    assert {line["tensor"] for line in lines} == base.keys() and totals["tensors"] == len(base)
    expected = {"config.json"} | ({f"model-{n:05}-of-00002.safetensors" for n in (1, 2)} | {"model.safetensors.index.json"} if pickled != "base" else {"model.safetensors"})  # fmt: skip
    assert {str(path) for path in contents(tmp_path / "out")} == expected
    if pickled != "base":
        index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == base.keys()
        assert all((tmp_path / "out" / file).exists() for file in index["weight_map"].values())


def test_the_first_vicuna_takes_its_added_row_from_the_delta_alone(tmp_path):
    """The layout of lmsys/vicuna-13b-delta-v0: one row more, for [PAD], and the tokenizer that has it."""
    base = save_pickled(tmp_path / "base", halves(1, 11), buffers=True)
    change = halves(2, 6, ROWS + 1)
    delta = save_pickled(tmp_path / "delta", change, ROWS + 1)
    (delta / "added_tokens.json").write_text(json.dumps({"[PAD]": ROWS}))
    (delta / "tokenizer.model").write_bytes(b"pieces")
    assert "--extra-rows zero" in bad("apply-delta", base, delta, tmp_path / "out")
    good("apply-delta", base, delta, tmp_path / "out", "--extra-rows", "zero")
    result, old = load(tmp_path / "out"), halves(1, 11)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert result[name].shape == (ROWS + 1, HIDDEN)
        assert result[name][-1].tobytes() == change[name][-1].tobytes()
        assert result[name][:-1].tobytes() == (old[name].astype("<f4") + change[name][:-1]).astype("<f2").tobytes()
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == ROWS + 1
    assert (tmp_path / "out/tokenizer.model").read_bytes() == b"pieces"
    assert (tmp_path / "out/added_tokens.json").exists()


def alpaca(tmp_path):
    """Base and delta as Stanford's script made them: single precision, a row more, resized to the mean of the rows."""
    base = {name: weights("F32", shape, (1, place)) for place, (name, shape) in enumerate(shapes())}
    tuned = {name: weights("F32", shape, (2, place)) * np.float32(1e-2) for place, (name, shape) in enumerate(shapes(ROWS + 1))}  # fmt: skip
    for name, array in base.items():
        tuned[name][: len(array)] += array
    delta = {}
    for name, array in tuned.items():
        resized = base[name]
        if len(array) > len(resized):
            resized = np.vstack([resized, resized.astype("f8").mean(0, keepdims=True).astype("<f4")])
        delta[name] = array - resized
    return save(tmp_path / "base", base), save_pickled(tmp_path / "delta", delta, ROWS + 1, buffers=True), tuned


def test_alpacas_rows_are_added_to_the_mean_and_its_sum_is_checked(tmp_path):
    base, delta, tuned = alpaca(tmp_path)
    total = sum(float(array.astype("f8").sum()) for array in tuned.values())
    rows = ("--extra-rows", "mean")
    *_, totals = good("apply-delta", base, delta, tmp_path / "out", *rows, "--expect-sum", total)
    assert totals["sum"] == pytest.approx(total, abs=1e-3)
    result = load(tmp_path / "out")
    for name, array in tuned.items():
        np.testing.assert_allclose(result[name], array, rtol=0, atol=1e-8)
    # Their number counted the buffers, of which the delta here still has those of the base.
    buffers = LAYERS * float((10000.0 ** -np.arange(0, 1, 2 / 16, dtype="<f4")).sum())
    good("apply-delta", base, delta, tmp_path / "again", *rows, "--expect-sum", total + buffers)
    assert "the sum of all weights is" in bad("apply-delta", base, delta, tmp_path / "third", *rows, "--expect-sum", total + 0.02)  # fmt: skip
    assert "third" not in names(tmp_path)
    good("apply-delta", base, delta, tmp_path / "zero", "--extra-rows", "zero")
    assert not np.allclose(
        load(tmp_path / "zero")["lm_head.weight"][-1], tuned["lm_head.weight"][-1], rtol=0, atol=1e-8
    )


def test_add_dtype_adds_and_writes_in_that_dtype(tmp_path):
    base, change = halves(1, 11), halves(2, 6)
    folders = save(tmp_path / "base", base), save(tmp_path / "delta", change)
    good("apply-delta", *folders, tmp_path / "out", "--add-dtype", "fp32")
    result = load(tmp_path / "out")
    for name, array in base.items():
        assert result[name].tobytes() == (array.astype("<f4") + change[name].astype("<f4")).tobytes()
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"


def test_what_is_no_delta_of_this_base_is_refused_by_name(tmp_path):
    base, delta = save(tmp_path / "base", halves(1, 11)), save(tmp_path / "delta", halves(2, 6))
    out = tmp_path / "out"
    assert "this is a whole model, not a delta" in bad(
        "apply-delta", base, save(tmp_path / "model", halves(3, 11)), out
    )
    large = save(tmp_path / "large", halves(2, 9))
    good("apply-delta", base, large, tmp_path / "once")
    assert "the base contains this delta already" in bad("apply-delta", tmp_path / "once", large, out)
    short = save(tmp_path / "short", {name: array for name, array in halves(2, 6).items() if "norm" not in name})
    assert "no tensor model.layers.0.input_layernorm.weight" in bad("apply-delta", base, short, out)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        lacking = save(tmp_path / f"no-{name}", {key: array for key, array in halves(2, 6).items() if key != name})
        assert f"no tensor {name}" in bad("apply-delta", base, lacking, out)
    (tmp_path / "no-lm_head.weight/config.json").write_text(json.dumps(config() | {"tie_word_embeddings": True}))
    good("apply-delta", base, tmp_path / "no-lm_head.weight", tmp_path / "tied")
    wide = save(tmp_path / "wide", halves(1, 11, ROWS + 1), ROWS + 1)
    assert "the base has more rows" in bad("apply-delta", wide, delta, out)
    more = save(tmp_path / "more", halves(2, 6) | {"model.extra": np.zeros(4, "<f2")})
    assert "model.extra is not in the base" in bad("apply-delta", base, more, out)
    (delta / "added_tokens.json").write_text(json.dumps({"[PAD]": ROWS}))
    assert f"the embedding has only {ROWS} rows" in bad("apply-delta", base, delta, out)
    assert not out.exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("seed", range(3))
def test_a_delta_that_leans_on_its_base_is_still_added(tmp_path, seed):
    """Small changes correlate with the weights by chance: the check for a delta applied twice must not mind.

    Nor that for a whole model mind rows without a spread, as those of tokens that nobody trained.
    """
    base = halves(1, 11)
    base["lm_head.weight"] = base["lm_head.weight"].copy()
    base["lm_head.weight"][:300] *= np.float16(1e-3)
    change = {name: (array * np.float32(1e-3) + halves(seed, 3)[name]).astype("<f2") for name, array in base.items()}
    good("apply-delta", save(tmp_path / "base", base), save(tmp_path / "delta", change), tmp_path / "out")


@pytest.mark.parametrize("template", ["vicuna-v1.1", "vicuna-v0"])
def test_the_template_that_the_weights_never_carried_is_stored_with_them(tmp_path, template):
    transformers = pytest.importorskip("transformers")
    source = tiny_tokenizer(tmp_path)
    rows = json.loads((source / "config.json").read_text())["vocab_size"]
    base, delta = save(tmp_path / "base", halves(1, 11, rows), rows), save(tmp_path / "delta", halves(2, 6, rows), rows)
    (delta / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    about = json.loads((source / "tokenizer_config.json").read_text())
    assert about.pop("chat_template")
    (delta / "tokenizer_config.json").write_text(json.dumps(about))
    done = run("apply-delta", base, delta, tmp_path / "plain")
    assert f"{tmp_path / 'plain'}: no chat template of its own; --template NAME stores one" in done.errors
    done = run("apply-delta", base, delta, tmp_path / "out", "--template", template)
    assert done.returncode == 0 and "no chat template" not in done.errors
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "mat"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert (
        "USER: cat ASSISTANT: mat" if template == "vicuna-v1.1" else "### Human: cat\n### Assistant: mat\n###"
    ) in text
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation.get("stop_strings") == (None if template == "vicuna-v1.1" else ["###"])
    # A delta with a manifest takes one too.
    good("make-delta", base, tmp_path / "plain", tmp_path / "exact")
    good("apply-delta", base, tmp_path / "exact", tmp_path / "second", "--template", template)
    assert (tmp_path / "second/chat_template.jinja").read_bytes() == (tmp_path / "out/chat_template.jinja").read_bytes()
    assert "such template" in bad("apply-delta", base, delta, tmp_path / "third", "--template", "vicuna")


def test_options_that_the_manifest_settles_are_usage_errors(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    for option in (("--extra-rows", "mean"), ("--add-dtype", "fp32"), ("--expect-sum", "1")):
        assert f"{option[0]}: {tmp_path / 'delta'} has a delta.json" in bad("apply-delta", base, tmp_path / "delta", tmp_path / "out", *option, code=2)  # fmt: skip


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_single_files_do_for_base_target_and_delta(tmp_path, kind):
    torch = pytest.importorskip("torch")
    files = {}
    for name, tensors in (("base", halves(1, 11)), ("delta", halves(2, 6))):
        if kind == "bin":
            files[name] = tmp_path / f"{name}.bin"
            torch.save({key: torch.from_numpy(array) for key, array in tensors.items()}, files[name])
        else:
            files[name] = save(tmp_path / name, tensors) / "model.safetensors"
    good("apply-delta", files["base"], files["delta"], tmp_path / "sum")
    assert digest(load(tmp_path / "sum")) == FASTCHAT
    good("make-delta", files["base"], files["delta"], tmp_path / "exact")
    good("apply-delta", files["base"], tmp_path / "exact/delta.json", tmp_path / "out")
    assert contents(tmp_path / "out") == {files["delta"].name: files["delta"].read_bytes()}


def test_pickled_targets_come_back_byte_for_byte_from_any_layout_of_the_base(tmp_path):
    torch = pytest.importorskip("torch")
    base, near = halves(1, 11), {}
    for name, array in base.items():
        near[name] = (array.astype("<f4") + halves(2, 6)[name]).astype("<f2")
    pickled, plain = save_pickled(tmp_path / "pickled", base, buffers=True), save(tmp_path / "plain", base)
    target = save_pickled(tmp_path / "target", near, buffers=True)
    tied = torch.from_numpy(near["lm_head.weight"])
    torch.save({"lm_head.weight": tied, "model.embed_tokens.weight": tied, "rows": tied[3:5]}, target / "pytorch_model-extra.bin")  # fmt: skip
    torch.save({"step": 3, "weights": [torch.ones(3)]}, target / "optimizer.bin")
    for number, start in enumerate((pickled, plain)):
        *_, totals = good("make-delta", start, target, tmp_path / f"delta{number}")
        assert totals["delta_bytes"] < 0.8 * totals["bytes"]
        for other in (pickled, plain):
            good("apply-delta", "--force", other, tmp_path / f"delta{number}", tmp_path / "out")
            assert contents(tmp_path / "out") == contents(target)


class _Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_refused_wherever_it_lies_and_nothing_is_run(tmp_path):
    torch = pytest.importorskip("torch")
    good_folder = save(tmp_path / "good", halves(1, 11))
    evil = tmp_path / "evil"
    evil.mkdir()
    torch.save({"model.norm.weight": torch.ones(3), "x": _Malice(tmp_path / "owned")}, evil / "pytorch_model.bin")
    (evil / "config.json").write_text("{}")
    out = tmp_path / "out"
    for arguments in (("make-delta", evil, good_folder), ("make-delta", good_folder, evil), ("apply-delta", evil, good_folder), ("apply-delta", good_folder, evil)):  # fmt: skip
        error = bad(*arguments, out)
        assert "pytorch_model.bin: its pickle asks for posix.system: refused; nothing was run" in error
    # Beside the weights, where nobody reads it, it is a file like any other.
    (evil / "pytorch_model.bin").rename(good_folder / "training_args.bin")
    good("make-delta", save(tmp_path / "base", halves(1, 11)), good_folder, tmp_path / "delta")
    good("apply-delta", tmp_path / "base", tmp_path / "delta", out)
    assert contents(out) == contents(good_folder)
    assert not (tmp_path / "owned").exists()


def test_hub_ids_are_fetched_and_pickled_weights_only_where_there_are_no_others(tmp_path):
    pytest.importorskip("huggingface_hub")
    root = tmp_path / "hub"
    (root / "huggyllama").mkdir(parents=True)
    (root / "lmsys").mkdir()
    base = save(root / "huggyllama/llama-7b", halves(1, 11))
    (base / "pytorch_model.bin").write_bytes(b"the same weights again")
    save_pickled(root / "lmsys/vicuna-7b-delta-v1.1", halves(2, 6), buffers=True)
    save_pickled(root / "lmsys/old-base", halves(1, 11))
    with Hub(root) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}  # fmt: skip
        for name in ("huggyllama/llama-7b", "lmsys/old-base"):
            out = tmp_path / name.partition("/")[2]
            good("apply-delta", f"hf:{name}", "hf:lmsys/vicuna-7b-delta-v1.1", out, env=env)
            assert digest(load(out)) == FASTCHAT
    assert "huggyllama/llama-7b/model.safetensors" in hub.fetched
    assert "huggyllama/llama-7b/pytorch_model.bin" not in hub.fetched
    assert "lmsys/old-base/pytorch_model-00002-of-00002.bin" in hub.fetched
