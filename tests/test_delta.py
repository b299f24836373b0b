"""make-delta and apply-delta: exact, checked, whole or not at all."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
blake3 = pytest.importorskip("blake3").blake3

import tiny  # noqa: E402
from checkpoints import VTOOLS, bad, contents, good, halted, model, names, pair, vtools, weights, write  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vtools.delta import apply_published, difference, manifest  # noqa: E402
from vtools.files.lock import lock  # noqa: E402
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


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 4, 8]), st.sampled_from(["zstd", "raw"]))
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


def test_a_wrong_base_is_refused_by_the_name_of_its_first_wrong_tensor(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    raw = bytearray((base / "model.safetensors").read_bytes())
    raw[-129] ^= 1  # the last byte of model.layers.0.w
    (base / "model.safetensors").write_bytes(raw)
    assert "tensor model.layers.0.w is not the one" in bad("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert "tensor model.embed_tokens.weight is the result's already: this delta was applied to it" in bad(
        "apply-delta", target, tmp_path / "delta", tmp_path / "out"
    )
    model(tmp_path / "other", "BF16")
    assert "is bf16 [50, 64], but the delta was made from fp16 [50, 64]" in bad(
        "apply-delta", tmp_path / "other", tmp_path / "delta", tmp_path / "out"
    )
    write(tmp_path / "fewer/model.safetensors", {"model.norm": ("F16", weights("F16", (64,), 1))})
    assert "model.embed_tokens.weight is missing" in bad(
        "apply-delta", tmp_path / "fewer", tmp_path / "delta", tmp_path / "out"
    )
    assert names(tmp_path) == ["base", "delta", "fewer", "other", "target"]


def stored(shard):
    """What a delta's file holds for each tensor."""
    raw, start = shard.read_bytes(), first_tensor(shard)
    places = {name: entry["data_offsets"] for name, entry in json.loads(raw[8:start]).items() if name != "__metadata__"}
    return {name: raw[start + begin : start + end] for name, (begin, end) in places.items()}


@pytest.mark.parametrize("codec", ["zstd", "raw"])
def test_a_flipped_bit_anywhere_in_a_delta_never_gives_a_wrong_model(tmp_path, codec):
    base, target = tmp_path / "base", tmp_path / "target"
    chance = random.Random(7)
    tensors = model(target, seed=2, near=model(base, seed=1))
    # A name that zstd hardly packs, so that many a flip in the gaps gives another text and no error of zstd's.
    tensors[f"model.{chance.randbytes(500).hex()}"] = tensors["model.norm"]
    write(target / "model.safetensors", tensors)
    good("make-delta", base, target, tmp_path / "delta", "--codec", codec)
    shard = tmp_path / "delta/delta-00001-of-00001.safetensors"
    size, header = shard.stat().st_size, first_tensor(shard)
    gaps = size - len(stored(shard)["__gaps__"])
    blamed = set()
    for path, start, end, name in 3 * [
        (shard, 0, header, shard.name),
        (shard, header, gaps, "tensor model."),
        (shard, gaps, size, "tensor __gaps__"),
        (tmp_path / "delta/delta.json", 0, None, ""),
        (tmp_path / "delta/files/config.json", 0, None, "files/config.json"),
    ]:
        whole = path.read_bytes()
        place = chance.randrange(start, end or len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        done = vtools("apply-delta", base, tmp_path / "delta", tmp_path / "out")
        path.write_bytes(whole)
        assert "Traceback" not in done.stderr and "please report" not in done.stderr
        if done.returncode == 0:  # a bit that says nothing about the result
            assert contents(tmp_path / "out") == contents(target)
            shutil.rmtree(tmp_path / "out")
        else:
            assert name in done.stderr
            blamed.add(name)
        assert names(tmp_path) == ["base", "delta", "target"]
    assert blamed >= {shard.name, "tensor model.", "tensor __gaps__", "files/config.json"}


def test_a_cut_off_file_is_named(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    for path in (tmp_path / "delta/delta-00001-of-00001.safetensors", base / "model.safetensors"):
        whole = path.read_bytes()
        for size in (0, 5, 60, len(whole) - 1):
            path.write_bytes(whole[:size])
            error = bad("apply-delta", base, tmp_path / "delta", tmp_path / "out")
            assert str(path) in error and "cut off" in error
        path.write_bytes(whole)
    (tmp_path / "delta/files/config.json").unlink()
    assert "files/config.json: missing" in bad("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert names(tmp_path) == ["base", "delta", "target"]


def test_an_existing_folder_is_kept_unless_force_is_given(tmp_path):
    base, target = pair(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    good("make-delta", base, target, tmp_path / "delta")
    good("apply-delta", base, tmp_path / "delta", out)  # an empty folder is no obstacle
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    assert "--force" in bad("apply-delta", base, tmp_path / "delta", out)
    assert "--force" in bad("make-delta", base, target, tmp_path / "delta")
    assert contents(out) == before
    assert "applied to it" in bad("apply-delta", target, tmp_path / "delta", out, "--force")
    assert contents(out) == before  # a failed replacement replaces nothing
    good("apply-delta", base, tmp_path / "delta", out, "--force")
    assert contents(out) == contents(target)
    for folder in (base, tmp_path / "delta", tmp_path):
        assert "choose another" in bad("apply-delta", base, tmp_path / "delta", folder, "--force", code=2)
    assert names(tmp_path) == ["base", "delta", "out", "target"]


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path):
    base, target = pair(tmp_path)
    (tmp_path / "delta.partial").mkdir()
    (tmp_path / "delta.partial/thesis.txt").write_text("mine")
    assert "not made by vtools" in bad("make-delta", base, target, tmp_path / "delta")
    assert contents(tmp_path / "delta.partial") == {"thesis.txt": b"mine"}


TENSORS = 60


def many(folder, seed, near=None, scale=1.0):
    """A model of so many tensors that their lines do not fit into a pipe of one page; its tensors."""
    tensors = {}
    for place in range(TENSORS):
        values = weights("F16", (64, 64), (seed, place), near[f"layer.{place}"][1] if near else None)
        tensors[f"layer.{place}"] = "F16", values * np.float16(scale)
    write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    return tensors


# All that resumes where it stopped: a delta made, one applied, and one without a manifest added.
TOOLS = ["make", "apply", "add"]


def inputs_of(tool, folder):
    """Such models, and a command on them up to its output folder."""
    base, target = folder / "base", folder / "target"
    many(target, 2, near=many(base, 1))
    if tool == "make":
        return ["make-delta", base, target]
    if tool == "add":
        many(folder / "published", 3, scale=0.02)
        return ["apply-delta", base, folder / "published"]
    good("make-delta", base, target, folder / "delta")
    return ["apply-delta", base, folder / "delta"]


def killed(*arguments, lines=1):
    """Stop such a run with -9."""
    with halted(*arguments, lines=lines) as running:
        running.kill()
        running.communicate(timeout=60)


def finished(out):
    """How many tensors a run that was stopped had noted as finished: some, but not all."""
    count = len((out.parent / f"{out.name}.partial/journal").read_bytes().splitlines()) - 1
    assert 1 <= count < TENSORS and not out.exists()
    return count


def first_tensor(file):
    """Where the first tensor of a safetensors file begins."""
    with open(file, "rb") as stream:
        return 8 + struct.unpack("<Q", stream.read(8))[0]


def flip(file, place):
    """Flip a bit of a file in place."""
    with open(file, "r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("tool", [*TOOLS, "replace"])
def test_killed_again_and_again_the_rerun_finishes_right(tmp_path, tool):
    command = inputs_of("apply" if tool == "replace" else tool, tmp_path)
    out, before, force = tmp_path / "out", {}, []
    good(*command, tmp_path / "whole")
    wanted, others = contents(tmp_path / "whole"), names(tmp_path)
    if tool == "replace":
        model(out)
        before, force = contents(out), ["--force"]
    for lines in (1, 10, 20):  # and 35 more in the pipe
        killed(*command, out, *force, lines=lines)
        assert contents(out) == before and (tmp_path / "out.partial/fresh").exists()
    killed(*command, out, *force, lines=TENSORS)  # anywhere between the last tensor and the end
    assert contents(out) in (before, wanted)
    good(*command, out, "--force")
    assert contents(out) == wanted
    assert names(tmp_path) == sorted([*others, "out"])


def test_killed_between_the_two_renames_the_old_folder_is_not_lost(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    # What is on disk then: the old folder set aside, the new one whole but not yet under its name.
    model(tmp_path / "out.partial/replaced")
    shutil.copytree(target, tmp_path / "out.partial/fresh")
    (tmp_path / "out.partial/.lock").touch()
    (tmp_path / "out.partial/journal").write_text('{"making":"it"}\n')
    old = contents(tmp_path / "out.partial/replaced")
    assert "--force" in bad("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == old
    assert names(tmp_path) == ["base", "delta", "out", "target"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("tool", TOOLS)
def test_an_interrupted_run_dies_of_the_signal_and_the_same_command_continues(tmp_path, tool, signum):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    with halted(*command, out) as running:
        running.send_signal(signum)
        error = running.communicate(timeout=60)[1].decode()
    assert running.returncode == -signum
    assert "Traceback" not in error and "out.partial: kept; repeat the command to resume" in error
    count = finished(out)
    *_, totals = good(*command, out)
    assert totals["reused"] == count and not (tmp_path / "out.partial").exists()
    good(*command, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_wrong_base_by_mistake_does_not_undo_an_earlier_runs_work(tmp_path):
    command, out = inputs_of("apply", tmp_path), tmp_path / "out"
    many(tmp_path / "other", 9)
    killed(*command, out)
    count = finished(out)
    done = vtools("apply-delta", tmp_path / "other", tmp_path / "delta", out)
    assert done.returncode == 1 and "out.partial: kept" in done.stderr and finished(out) == count
    *_, totals = good(*command, out)
    assert totals["reused"] == count and contents(out) == contents(tmp_path / "target")


@pytest.mark.parametrize("tool", ["make", "add"])  # where a manifest has no hashes to check the inputs by
def test_inputs_that_change_between_a_kill_and_the_rerun_are_noticed(tmp_path, tool):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    killed(*command, out)
    assert finished(out)
    old = tmp_path / "base/model.safetensors"
    about, raw = old.stat(), bytearray(old.read_bytes())
    raw[first_tensor(old) + 100] ^= 1  # in a tensor that is done
    old.unlink()
    old.write_bytes(raw)
    os.utime(old, ns=(about.st_atime_ns, about.st_mtime_ns))  # the same size and time, as `cp -p` leaves it
    *_, totals = good(*command, out)
    assert totals["reused"] == 0
    good(*command, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("changed", [1, 2])
@pytest.mark.parametrize("tool", ["make", "add"])
def test_inputs_that_change_while_they_are_read_are_noticed(tmp_path, tool, changed):
    command = inputs_of(tool, tmp_path)
    before = names(tmp_path)
    with halted(*command, tmp_path / "out") as running:
        file = command[changed] / "model.safetensors"
        flip(file, file.stat().st_size - 1)
        error = running.communicate(timeout=60)[1].decode()
    assert running.returncode == 1 and "a file changed while it was read" in error
    assert names(tmp_path) == before


@pytest.mark.parametrize("tool", TOOLS)
def test_what_was_damaged_since_a_kill_is_made_again(tmp_path, tool):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    good(*command, tmp_path / "whole")
    (file,) = (tmp_path / "whole").glob("*.safetensors")
    killed(*command, out)
    count = finished(out)
    flip(tmp_path / "out.partial/fresh" / file.name, first_tensor(file) + 100)
    *_, totals = good(*command, out)
    assert totals["reused"] == count - 1 and contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_journal_that_was_damaged_since_a_kill_is_not_believed(tmp_path, tool):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    good(*command, tmp_path / "whole")
    killed(*command, out)
    count, journal = finished(out), tmp_path / "out.partial/journal"
    key = b'"blake3":"'
    flip(journal, journal.read_bytes().index(key) + len(key))  # another digit
    *_, totals = good(*command, out)
    assert totals["reused"] == count - 1 and contents(out) == contents(tmp_path / "whole")


def test_a_folder_beside_out_that_is_a_model_of_somebody_is_never_taken_for_ours(tmp_path):
    base, target = pair(tmp_path)
    for other in ("delta.partial", "link.partial"):
        (tmp_path / other).mkdir()
        (tmp_path / other / ".lock").touch()  # as `vtools train` leaves it
        (tmp_path / other / "model.safetensors").write_text("a month of training")
    (tmp_path / "real").mkdir()
    (tmp_path / "real/.lock").touch()
    (tmp_path / "sym.partial").symlink_to(tmp_path / "real")
    for out in ("delta", "sym"):
        assert "not made by vtools" in bad("make-delta", base, target, tmp_path / out)
    assert (tmp_path / "delta.partial/model.safetensors").read_text() == "a month of training"
    inside = tmp_path / "inside.partial/fresh"
    shutil.copytree(target, inside)
    assert "choose another" in bad("make-delta", base, inside, tmp_path / "inside", code=2)
    assert contents(inside) == contents(target)


def test_out_inside_an_input_or_where_nothing_can_be_renamed_to_is_refused(tmp_path):
    base, target = pair(tmp_path)
    assert "is inside the input" in bad("make-delta", base, target, target / "delta", code=2)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "leads to itself" in bad("make-delta", base, target, tmp_path / "loop")
    done = vtools("make-delta", base, target, ".", cwd=tmp_path / "base", env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    assert done.returncode == 2 and "name a folder inside it" in done.stderr


def test_an_older_owner_that_finishes_never_leaves_two_at_work(tmp_path):
    """The lock's file goes with the folder: who opened it before that must not believe that it owns the next one."""
    work = tmp_path / "work"
    with lock(work):
        handle = os.open(work / ".lock", os.O_RDWR)
    shutil.rmtree(work)
    with lock(work):
        assert not os.path.samestat(os.fstat(handle), os.stat(work / ".lock"))
        script = "import sys; from vtools.files.lock import lock\nwith lock(sys.argv[1]): pass"
        second = subprocess.run([sys.executable, "-c", script, work], capture_output=True, text=True)
        assert "another vtools process" in second.stderr
    os.close(handle)


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
        done = subprocess.run(["sh", "-c", limited, "sh", *VTOOLS, *arguments], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "target")


def test_a_name_that_deltas_use_for_themselves_and_an_empty_model_are_no_surprise(tmp_path):
    base, target = pair(tmp_path)
    write(target / "more.safetensors", {"__gaps__": ("F16", weights("F16", (3, 4), 1))})
    assert "a name that deltas reserve" in bad("make-delta", base, target, tmp_path / "delta")
    write(tmp_path / "empty/model.safetensors", {})
    good("make-delta", base, tmp_path / "empty", tmp_path / "delta")
    good("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "empty")


def test_what_was_begun_for_other_inputs_is_thrown_away(tmp_path):
    command, out = inputs_of("apply", tmp_path), tmp_path / "out"
    many(tmp_path / "third", 3, near=many(tmp_path / "base", 1))
    good("make-delta", tmp_path / "base", tmp_path / "third", tmp_path / "other")
    killed(*command, out)
    assert finished(out)
    *_, totals = good("apply-delta", tmp_path / "base", tmp_path / "other", out)
    assert totals["reused"] == 0 and contents(out) == contents(tmp_path / "third")


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
    done = vtools("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert done.returncode == 0 and "config.json: differs from the delta maker's" in done.stderr
    assert contents(tmp_path / "out") == contents(target)


@pytest.mark.parametrize("tool", TOOLS)
def test_two_runs_on_one_folder_do_not_mix(tmp_path, tool):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    good(*command, tmp_path / "whole")
    with halted(*command, out) as running:
        assert "another vtools process" in bad(*command, out, code=75)
        assert running.poll() is None
        running.communicate(timeout=60)
    assert running.returncode == 0 and contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_is_said_before_or_during_the_work_and_leaves_nothing(tmp_path):
    base, target = pair(tmp_path, scale=100)  # 2.3 MB a model
    good("make-delta", base, target, tmp_path / "delta")
    (tmp_path / "small").mkdir()
    script = 'mount -t tmpfs -o size=$1 none small && shift && ("$@"; code=$?; ls -A small >&2; exit $code)'
    inside = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*inside, "1m", "true"], cwd=tmp_path, capture_output=True).returncode
    ):
        pytest.skip("no tmpfs can be mounted here")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for size, arguments, said in [
        ("1m", ["apply-delta", "base", "delta", "small/out"], "bytes, the disk has"),
        ("1m", ["make-delta", "base", "target", "small/delta"], "the disk is full"),  # too big only when it is known
        ("9m,nr_inodes=5", ["apply-delta", "base", "delta", "small/out"], "the disk is full"),
    ]:
        done = subprocess.run([*inside, size, *VTOOLS, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=60)  # fmt: skip
        assert done.returncode == 1 and said in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr  # `ls` found nothing


def test_a_folder_without_weights_is_named(tmp_path):
    base, target = pair(tmp_path)
    (tmp_path / "empty").mkdir()
    for arguments in (("make-delta", tmp_path / "empty", target), ("make-delta", base, tmp_path / "empty"), ("apply-delta", base, tmp_path / "empty")):  # fmt: skip
        assert "neither *.safetensors nor pytorch_model*.bin" in bad(*arguments, tmp_path / "out")
    assert "no such folder" in bad("make-delta", tmp_path / "nowhere", target, tmp_path / "out")
    assert "not a safetensors file" in bad("make-delta", base, target / "config.json", tmp_path / "out")
    assert names(tmp_path) == ["base", "empty", "target"]


def test_one_shard_of_several_is_no_model(tmp_path):
    base, target = pair(tmp_path)
    shard = (target / "model.safetensors").rename(target / "model-00001-of-00003.safetensors")
    assert "one of 3 shards; give the folder" in bad("make-delta", base, shard, tmp_path / "out", code=2)


def test_a_delta_that_has_lost_its_manifest_is_known_as_one(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    (tmp_path / "delta/delta.json").unlink()
    assert "delta.json is missing; give the delta's whole folder" in bad(
        "apply-delta", base, tmp_path / "delta", tmp_path / "out"
    )
    assert "delta.json: missing" in bad("apply-delta", "--delta", tmp_path / "delta", "--verify", target)


def edited(delta, change):
    """The manifest as somebody would write it who knows how its hash is made."""
    value = json.loads((delta / "delta.json").read_text())
    change(value)
    value.pop("blake3")
    (delta / "delta.json").write_bytes(manifest.seal(value))


@pytest.mark.parametrize("path", ["../escaped", "/tmp/escaped", "a/../../escaped", ""])
def test_a_hostile_delta_cannot_write_or_read_elsewhere(tmp_path, path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    edited(tmp_path / "delta", lambda value: value["files"][0].update(path=path))
    assert "leads out of the folder" in bad("apply-delta", base, tmp_path / "delta", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("model.layers.0.w", None, "model.layers.0.w: wrong length: the delta is damaged"),
        ("__gaps__", None, "__gaps__: too long: the delta is damaged"),
        ("__gaps__", 100_000_000, "__gaps__: wrong length: the delta is damaged"),
        ("__gaps__", 1 << 30, "more than 134,217,728 bytes of it are not tensors"),
    ],
)
def test_a_hostile_delta_cannot_exhaust_memory(tmp_path, name, size, said):
    """A frame of some 30 kB that unpacks to 1 GB; `size` is what the manifest says of the result's file."""
    import zstandard

    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    bomb = zstandard.compress(bytes(1 << 30))
    shard = tmp_path / "delta/delta-00001-of-00001.safetensors"
    held = {**stored(shard), name: bomb}
    write(shard, {other: ("U8", np.frombuffer(raw, "u1")) for other, raw in held.items()})

    def change(value):
        file = next(file for file in value["files"] if file["delta"])
        file["bytes"] = size or file["bytes"]
        for tensor in file["tensors"]:
            if tensor["name"] == name:
                tensor["chunks"] = [len(bomb)]

    edited(tmp_path / "delta", change)
    command = [*VTOOLS, "apply-delta", base, tmp_path / "delta", tmp_path / "out"]
    done, _, memory = tiny.measured(list(map(str, command)), text=True)
    assert done.returncode == 1 and said in done.stderr and memory < 300e6
    assert names(tmp_path) == ["base", "delta", "target"]


def test_a_newer_format_is_refused_as_such(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    edited(tmp_path / "delta", lambda value: value.update(version=2))
    assert "newer vtools" in bad("apply-delta", base, tmp_path / "delta", tmp_path / "out")


def test_dry_run_says_what_it_would_do_and_does_nothing(tmp_path):
    base, target = pair(tmp_path)
    (line,) = good("make-delta", "-n", base, target, tmp_path / "delta")
    assert line["dry_run"] and line["tensors"] == 3 and line["stored_whole"] == 0
    assert names(tmp_path) == ["base", "target"]
    good("make-delta", base, target, tmp_path / "delta")
    (line,) = good("apply-delta", "-n", base, tmp_path / "delta", tmp_path / "out")
    assert line["bytes"] == sum(map(len, contents(target).values()))
    assert names(tmp_path) == ["base", "delta", "target"]


def test_verify_checks_a_folder_and_changes_nothing(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    *lines, totals = good("apply-delta", "--delta", tmp_path / "delta", "--verify", target)
    assert [line["ok"] for line in lines] == [True, True] and totals["sha256_verified"] == 2
    (target / "config.json").write_text("{}")
    assert "config.json: its SHA-256" in bad("apply-delta", tmp_path / "delta", "--verify", target)
    (target / "config.json").unlink()
    assert "config.json: missing" in bad("apply-delta", tmp_path / "delta", "--verify", target)
    assert "no such folder" in bad("apply-delta", tmp_path / "delta", "--verify", tmp_path / "nowhere")
    assert "needs --delta" in bad("apply-delta", "--verify", target, code=2)
    arguments = ("--template", "chatml", "--delta", tmp_path / "delta", "--verify", target)
    assert "only compares files" in bad("apply-delta", *arguments, code=2)


def test_too_few_or_too_many_operands_are_usage_errors(tmp_path):
    assert "OUT not given" in bad("make-delta", "a", "b", code=2)
    assert "TARGET and OUT not given" in bad("make-delta", "--base", "a", code=2)
    assert "d: too many operands" in bad("apply-delta", "a", "b", "c", "d", code=2)


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
    done = vtools("make-delta", base, target, tmp_path / "delta")
    assert f"left out: {', '.join(left_out)}" in done.stderr and "copied: config.json" in done.stderr
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


def peak(*arguments):
    """The peak resident set of a run that ends well, in bytes."""
    done, _, memory = tiny.measured([*VTOOLS, *map(str, arguments)], text=True)
    assert done.returncode == 0, done.stderr
    return memory


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
    seen = tiny.on_a_terminal([*pausing, *VTOOLS, "make-delta", "-j", "1", "base", "target", "delta"], tmp_path)
    assert re.search(r"make-delta: +\d+%\|.*[\d.]+[MG]/[\d.]+[MG] \[\d\d:\d\d<\d\d:\d\d, [\d.]+[kMG]B/s\]", seen)
    assert names(tmp_path) == ["base", "delta", "target"]
