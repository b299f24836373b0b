"""make-delta and apply-delta: wrong, damaged and hostile inputs are named, and nothing of anybody's is lost."""

import json
import random
import shutil

import pytest

np = pytest.importorskip("numpy")
blake3 = pytest.importorskip("blake3").blake3

from checkpoints import contents, first_tensor, model, names, pair, weights, write  # noqa: E402
from running import bad, command, good, measured, on_a_disk_of, run  # noqa: E402

from vtools.delta import manifest  # noqa: E402


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
        done = run("apply-delta", base, tmp_path / "delta", tmp_path / "out")
        path.write_bytes(whole)
        assert "Traceback" not in done.errors and "please report" not in done.errors
        if done.returncode == 0:  # a bit that says nothing about the result
            assert contents(tmp_path / "out") == contents(target)
            shutil.rmtree(tmp_path / "out")
        else:
            assert name in done.errors
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
    done = run("make-delta", base, target, ".", cwd=tmp_path / "base")
    assert done.returncode == 2 and "name a folder inside it" in done.errors


def test_a_full_disk_is_said_before_or_during_the_work_and_leaves_nothing(tmp_path):
    base, target = pair(tmp_path, scale=100)  # 2.3 MB a model
    good("make-delta", base, target, tmp_path / "delta")
    for size, arguments, said in [
        ("1m", ["apply-delta", "base", "delta", "small/out"], "bytes, the disk has"),
        ("1m", ["make-delta", "base", "target", "small/delta"], "the disk is full"),  # too big only when it is known
        ("9m,nr_inodes=5", ["apply-delta", "base", "delta", "small/out"], "the disk is full"),
    ]:
        done = on_a_disk_of(size, command(*arguments), tmp_path)
        assert done.returncode == 1 and said in done.errors
        assert len(done.errors.splitlines()) == 1, done.errors  # `ls` found nothing


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
    done, _, memory = measured(command("apply-delta", base, tmp_path / "delta", tmp_path / "out"))
    assert done.returncode == 1 and said in done.errors and memory < 300e6
    assert names(tmp_path) == ["base", "delta", "target"]


def test_a_newer_format_is_refused_as_such(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    edited(tmp_path / "delta", lambda value: value.update(version=3))
    assert "newer vtools" in bad("apply-delta", base, tmp_path / "delta", tmp_path / "out")


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
    assert "d: too many arguments" in bad("apply-delta", "a", "b", "c", "d", code=2)
