"""make-delta and apply-delta: every file comes back byte for byte, whatever the model looks like."""

import hashlib
import json
import random
import re
import shutil

import pytest

np = pytest.importorskip("numpy")
blake3 = pytest.importorskip("blake3").blake3

from checkpoints import contents, model, names, pair, weights, write  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from running import bad, command, execute, good, on_a_terminal, peak, run  # noqa: E402

from vtools.delta import apply_published, difference  # noqa: E402
from vtools.weights import dtypes  # noqa: E402


@pytest.mark.parametrize("codec", ["zstd", "raw"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_round_trip_gives_every_file_back_byte_for_byte(tmp_path, dtype, codec):
    base, target = pair(tmp_path, dtype)
    (target / "tokenizer.json").write_bytes(random.Random(0).randbytes(3_000_000))
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling/config.json").write_text("{}\r\n")
    (target / ".gitattributes").write_text("*.bin lfs\n")
    (target / "training_args.bin").write_bytes(b"\x80\x02}q\x00.")
    (target / "empty.txt").touch()
    good("make-delta", base, target, tmp_path / "delta", "--codec", codec)
    good("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(target)
    assert names(tmp_path) == ["base", "delta", "out", "target"]


def test_shards_vocabulary_ties_dtypes_and_new_tensors_may_all_differ_between_base_and_target(tmp_path):
    def tensor(dtype, shape, seed):
        return dtype, weights(dtype, shape, seed)

    base, target = tmp_path / "base", tmp_path / "target"
    embedding, big = tensor("BF16", (100, 32), 1), tensor("BF16", (3000, 1000), 2)  # big: two chunks, a ragged end
    buffer = "I64", np.arange(7, dtype="<i8")
    write(
        base / "model-00001-of-00002.safetensors",
        {"model.embed_tokens.weight": embedding, "shrunk": tensor("F16", (9, 4), 3)},
    )
    write(
        base / "model-00002-of-00002.safetensors",
        {"big": big, "cast": tensor("F16", (33, 5), 4), "gone": tensor("F32", (2, 2), 5), "buffer": buffer, "turned": tensor("F16", (5, 3), 9)},
    )  # fmt: skip
    grown = np.vstack([embedding[1], weights("BF16", (3, 32), 6)])
    write(target / "a.safetensors", {"big": ("BF16", big[1] ^ 1), "lm_head.weight": ("BF16", grown)}, padding=13)
    write(
        target / "sub/b.safetensors", {"model.embed_tokens.weight": ("BF16", grown), "new ü": tensor("F32", (4, 4), 7)}
    )
    write(
        target / "c.safetensors",
        {
            "shrunk": tensor("F16", (5, 4), 3), "cast": tensor("F32", (33, 5), 4), "scalar": ("F32", np.array(3.5, "<f4")),
            "none": ("F16", np.zeros((0, 8), "<f2")), "buffer": ("I64", buffer[1] * -3), "flags": ("BOOL", np.array([1, 0, 1], "u1")),
            "turned": tensor("F16", (3, 5), 9), "tiny": ("F8_E4M3", np.arange(11, dtype="u1")),
        },
    )  # fmt: skip
    write(target / "d.safetensors", {})
    *_, totals = good("make-delta", base, target, tmp_path / "delta")
    *lines, _ = good("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(target)
    assert (
        totals["stored_whole"] == 6
    )  # new ü, scalar, none, flags, turned, tiny: the rest has a base, lm_head a tied one
    stored = {line["tensor"] for line in lines}
    assert {"lm_head.weight", "new ü", "none", "scalar"} <= stored
    manifest = json.loads((tmp_path / "delta/delta.json").read_text())
    of = {tensor["name"]: tensor["base"] for file in manifest["files"] for tensor in file["tensors"]}
    assert of["lm_head.weight"]["name"] == "model.embed_tokens.weight"
    assert of["cast"]["dtype"] == "F16" and of["shrunk"]["shape"] == [9, 4]
    # The hash of the base is that of its whole tensor, also where the target needs only its first rows.
    assert of["shrunk"]["blake3"] == blake3(weights("F16", (9, 4), 3).tobytes()).hexdigest()

    # The same base in other shards is the same base.
    resharded = tmp_path / "resharded"
    merged = {"turned": tensor("F16", (5, 3), 9), "gone": tensor("F32", (2, 2), 5), "cast": tensor("F16", (33, 5), 4)}
    merged |= {"buffer": buffer, "big": big, "shrunk": tensor("F16", (9, 4), 3), "model.embed_tokens.weight": embedding}
    write(resharded / "model.safetensors", merged)
    good("apply-delta", resharded, tmp_path / "delta", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(target)


def test_a_model_of_thousands_of_tensors_comes_back(tmp_path):
    for name, seed in (("base", 1), ("target", 2)):
        tensors = {
            f"model.layers.{place}.größe": ("F16", weights("F16", (3, 5), (seed, place))) for place in range(5000)
        }
        write(tmp_path / name / "model.safetensors", tensors)
    good("make-delta", tmp_path / "base", tmp_path / "target", tmp_path / "delta")
    *_, totals = good("apply-delta", tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "target") and totals["tensors"] == 5000


@settings(max_examples=200)
@given(st.data(), st.sampled_from([1, 2, 4, 8]), st.sampled_from(["planes", "raw"]))
def test_the_difference_of_any_two_bit_patterns_is_exact(data, width, codec):
    size = width * data.draw(st.integers(1, 40))
    base, target = (np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), "u1") for _ in "bt")
    payload = np.frombuffer(bytearray(difference.encode(target, base, width, codec)), "u1")
    assert difference.decode(payload, base, width, codec).tobytes() == target.tobytes()


def test_conversion_and_addition_have_the_bits_of_torch():
    torch = pytest.importorskip("torch")
    patterns = np.arange(65536, dtype="<u2").view("u1")
    other = np.random.default_rng(0).permutation(65536).astype("<u2").view("u1")
    single = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype="<u4").view("u1")
    of_torch = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

    def of(raw, dtype):
        return torch.from_numpy(raw.copy()).view(of_torch[dtype])

    def same(ours, theirs, dtype):
        theirs, ours = theirs.contiguous(), of(ours, dtype)
        assert torch.equal(ours.isnan(), theirs.isnan())
        ours, theirs = (value.view(torch.uint8).view(-1, value.element_size()) for value in (ours, theirs))
        real = ~of(np.ascontiguousarray(ours.numpy()).reshape(-1), dtype).isnan()
        assert torch.equal(ours[real], theirs[real])

    for source, raw in (("F16", patterns), ("BF16", patterns), ("F32", single)):
        for wanted in of_torch:
            same(dtypes.convert(raw, source, wanted), of(raw, source).to(of_torch[wanted]), wanted)
    for dtype in ("F16", "BF16"):
        same(apply_published.add(patterns, other, dtype), of(patterns, dtype) + of(other, dtype), dtype)


def test_a_real_model_with_tied_embeddings_comes_back_and_loads(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    tied = transformers.LlamaForCausalLM(config).bfloat16()
    tied.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in tied.parameters():
            parameter.add_(torch.randn_like(parameter) * 5e-4)
    tied.resize_token_embeddings(131, mean_resizing=False)
    tied.save_pretrained(tmp_path / "target", max_shard_size="40KB")
    assert len(list((tmp_path / "target").glob("*.safetensors"))) > 1
    good("make-delta", tmp_path / "base", tmp_path / "target", tmp_path / "delta")
    good("apply-delta", tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "target")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), tied.parameters(), strict=True))


def test_a_delta_is_small_readable_by_the_safetensors_library_and_the_same_every_time(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    base, target = pair(tmp_path, "BF16", scale=40)
    *lines, totals = good("make-delta", base, target, tmp_path / "delta")
    good("make-delta", base, target, tmp_path / "again")
    assert contents(tmp_path / "delta") == contents(tmp_path / "again")
    assert totals["delta_bytes"] == sum(map(len, contents(tmp_path / "delta").values()))
    assert totals["delta_bytes"] < 0.55 * totals["bytes"]
    with safetensors.safe_open(tmp_path / "delta/delta-00001-of-00001.safetensors", "numpy") as stored:
        sizes = {name: stored.get_tensor(name).nbytes for name in stored.keys()}  # noqa: SIM118
        assert sizes.pop("__gaps__") > 0  # the target's own header
        assert sizes == {line["tensor"]: line["delta_bytes"] for line in lines}
        assert all(stored.get_tensor(name).dtype == np.uint8 for name in stored.keys())  # noqa: SIM118
    assert not (tmp_path / "delta/config.json").exists()  # nobody loads a delta as if it were the model


def test_each_line_names_a_tensor_and_its_hash_and_the_last_one_counts(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", "--base", base, "--target", target, "--delta", tmp_path / "delta")
    *lines, totals = good("apply-delta", "--base", base, "--target", tmp_path / "out", "--delta", tmp_path / "delta")
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(target / "model.safetensors")
    assert {line["tensor"]: (line["bytes"], line["blake3"]) for line in lines} == {
        name: (tensor.nbytes, blake3(tensor.tobytes()).hexdigest()) for name, tensor in tensors.items()
    }
    assert all(isinstance(line["ms"], int) for line in lines)
    assert (totals["tensors"], totals["files"], totals["verified"], totals["reused"]) == (3, 2, True, 0)
    assert totals["bytes"] == sum(map(len, contents(target).values())) and totals["out"] == str(tmp_path / "out")
    manifest = json.loads((tmp_path / "delta/delta.json").read_text())
    assert {file["path"]: file["sha256"] for file in manifest["files"]} == {
        name: hashlib.sha256(raw).hexdigest() for name, raw in contents(target).items()
    }
    assert manifest["base"] == "base" and str(tmp_path) not in (tmp_path / "delta/delta.json").read_text()


def test_the_files_that_transformers_would_load_are_the_base(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    # A model saved again as one file, beside the shards and the index of before.
    model(tmp_path / "old", seed=9)
    shutil.copy(tmp_path / "old/model.safetensors", base / "model-00001-of-00001.safetensors")
    stale = {name: "model-00001-of-00001.safetensors" for name in ("model.embed_tokens.weight", "model.layers.0.w", "model.norm")}  # fmt: skip
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": stale}))
    good("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(target)
    # And shards that an index places in a folder of their own.
    (tmp_path / "nested/weights").mkdir(parents=True)
    shutil.copy(base / "model.safetensors", tmp_path / "nested/weights/one.safetensors")
    (tmp_path / "nested/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(stale, "weights/one.safetensors")}))  # fmt: skip
    good("apply-delta", tmp_path / "nested", tmp_path / "delta", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(target)


def test_hundreds_of_shards_do_not_run_out_of_files(tmp_path):
    for name, seed in (("base", 1), ("target", 2)):
        for shard in range(300):
            write(tmp_path / name / f"model-{shard:05}.safetensors", {f"w{shard}": ("F16", weights("F16", (3, 4), (seed, shard)))})  # fmt: skip
    limited = 'ulimit -n 256; exec "$@"'
    for arguments in (["make-delta", "base", "target", "delta"], ["apply-delta", "-j", "4", "base", "delta", "out"]):
        done = execute(["sh", "-c", limited, "sh", *command(*arguments)], cwd=tmp_path)
        assert done.returncode == 0, done.errors
    assert contents(tmp_path / "out") == contents(tmp_path / "target")


def test_a_name_that_deltas_use_for_themselves_and_an_empty_model_are_no_surprise(tmp_path):
    base, target = pair(tmp_path)
    write(target / "more.safetensors", {"__gaps__": ("F16", weights("F16", (3, 4), 1))})
    assert "a name that deltas reserve" in bad("make-delta", base, target, tmp_path / "delta")
    write(tmp_path / "empty/model.safetensors", {})
    good("make-delta", base, tmp_path / "empty", tmp_path / "delta")
    good("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "empty")


def test_the_number_of_threads_changes_no_byte(tmp_path):
    base, target = pair(tmp_path, "BF16", scale=200)
    for jobs in (1, 2, 5):
        good("make-delta", "-j", jobs, base, target, tmp_path / f"delta{jobs}")
        *lines, _ = good("apply-delta", "-j", jobs, base, tmp_path / "delta1", tmp_path / f"out{jobs}")
        assert contents(tmp_path / f"delta{jobs}") == contents(tmp_path / "delta1")
        assert contents(tmp_path / f"out{jobs}") == contents(target)
        assert [line["tensor"] for line in lines] == ["model.embed_tokens.weight", "model.layers.0.w", "model.norm"]


def test_a_base_with_another_tokenizer_is_said_and_used(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    (base / "config.json").write_text("{}")
    done = run("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert done.returncode == 0 and "config.json: differs from the delta maker's" in done.errors
    assert contents(tmp_path / "out") == contents(target)


def test_dry_run_says_what_it_would_do_and_does_nothing(tmp_path):
    base, target = pair(tmp_path)
    (line,) = good("make-delta", "-n", base, target, tmp_path / "delta")
    assert line["dry_run"] and line["tensors"] == 3 and line["stored_whole"] == 0
    assert names(tmp_path) == ["base", "target"]
    good("make-delta", base, target, tmp_path / "delta")
    (line,) = good("apply-delta", "-n", base, tmp_path / "delta", tmp_path / "out")
    assert line["bytes"] == sum(map(len, contents(target).values()))
    assert names(tmp_path) == ["base", "delta", "target"]


def test_training_checkpoints_and_what_is_hidden_are_not_part_of_the_model(tmp_path):
    base, target = pair(tmp_path)
    for name in (".git", "checkpoint-100"):
        (target / name).mkdir()
        (target / name / "state").write_text("x")
    (target / ".env").write_text("HF_TOKEN=secret")
    (target / "model-2.safetensors.part").write_text("half")
    left_out = [".git", "checkpoint-100", ".env", "model-2.safetensors.part"]
    (planned,) = good("make-delta", "-n", base, target, tmp_path / "delta")
    assert (planned["left_out"], planned["carried"]) == (left_out, ["config.json"])
    done = run("make-delta", base, target, tmp_path / "delta")
    assert f"left out: {', '.join(left_out)}" in done.errors and "copied: config.json" in done.errors
    assert json.loads(done.stdout.splitlines()[-1])["left_out"] == left_out
    good("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert names(tmp_path / "out") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_published_delta_without_manifest_is_added_with_torchs_bits(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    base = {"model.embed_tokens.weight": torch.randn(50, 64) * 0.02, "model.layers.0.w": torch.randn(3000, 1000) * 0.02}
    base = {name: tensor.to(torch.float16) for name, tensor in base.items()}
    delta = {name: (torch.randn(tensor.shape) * 5e-4).to(kind) for name, tensor in base.items()}
    delta["model.embed_tokens.weight"] = torch.cat(
        [delta["model.embed_tokens.weight"], torch.full((1, 64), 0.5).to(kind)]
    )
    for name, tensors in (("base", base), ("delta", delta)):
        (tmp_path / name).mkdir()
        safetensors.save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "tokenizer.model").write_text(name)
    (tmp_path / "base/config.json").write_text("{}")
    where = (tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert "--extra-rows zero (Vicuna v0) or --extra-rows mean (Alpaca)" in bad("apply-delta", *where)
    good("apply-delta", *where, "--extra-rows", "zero")
    result = safetensors.load_file(tmp_path / "out/model.safetensors")
    wanted = {name: delta[name].clone() for name in delta}
    for name, tensor in base.items():
        wanted[name][: len(tensor)] += tensor.to(kind)
    assert result.keys() == wanted.keys()
    assert all(torch.equal(result[name].view(torch.int16), wanted[name].view(torch.int16)) for name in wanted)
    assert (tmp_path / "out/tokenizer.model").read_text() == "delta" and (tmp_path / "out/config.json").exists()
    assert "whole model" in bad("apply-delta", "-q", tmp_path / "base", tmp_path / "base", tmp_path / "twice")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    peaks, size = {}, {}
    for name, scale in (("small", 3000), ("large", 9000)):  # 70 and 210 MB: every buffer is in use in both
        base, target = pair(tmp_path / name, scale=scale)
        size[name] = sum(path.stat().st_size for path in target.iterdir())
        peaks[name] = (
            peak("make-delta", base, target, tmp_path / name / "delta"),
            peak("apply-delta", base, tmp_path / name / "delta", tmp_path / name / "out"),
        )
        shutil.rmtree(tmp_path / name)
    # The threads' timing moves a peak by some 17 MB. A tensor held whole would add 100 MB: so much did the largest grow.
    for small, large in zip(peaks["small"], peaks["large"], strict=True):
        assert large - small < (size["large"] - size["small"]) / 4 and large < 128e6


def test_progress_shows_bytes_a_second_and_the_time_left(tmp_path):
    for name, seed in (("base", 1), ("target", 2)):
        write(tmp_path / name / "model.safetensors", {f"layer.{place}": ("F16", weights("F16", (64, 64), (seed, place))) for place in range(1500)})  # fmt: skip
    # More lines than a pipe holds, and a reader that pauses after the first: so long that the bar is drawn again.
    pausing = ["sh", "-c", '"$@" | { read -r line; sleep 1; cat; }', "sh"]
    seen = on_a_terminal([*pausing, *command("make-delta", "-j", 1, "base", "target", "delta")], tmp_path)
    assert re.search(r"make-delta: +\d+%\|.*[\d.]+[MG]/[\d.]+[MG] \[\d\d:\d\d<\d\d:\d\d, [\d.]+[kMG]B/s\]", seen)
    assert names(tmp_path) == ["base", "delta", "target"]
