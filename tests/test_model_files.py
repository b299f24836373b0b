"""Which files of a folder are the model, and which of their bytes are its tensors."""

import json
import shutil

import pytest
import tiny
from checkpoints import contents, model, names, pair, weights, write
from running import bad, good, peak

from vtools.weights import model_files

np = pytest.importorskip("numpy")


@pytest.mark.parametrize("length", [0x4B50, 0x4B50 + (1 << 16)])
def test_a_header_whose_length_spells_the_letters_of_a_zip_is_a_header(tmp_path, length):
    base, target = pair(tmp_path)
    short = int.from_bytes((target / "model.safetensors").read_bytes()[:8], "little")
    tensors = {
        tensor.name: (tensor.dtype, weights("F16", tensor.shape, 5))
        for tensor in model_files.read(target / "model.safetensors")
    }
    write(target / "model.safetensors", tensors, padding=length - short)
    assert (target / "model.safetensors").read_bytes().startswith(b"PK")
    good("make-delta", base, target, tmp_path / "delta")
    good("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(target)


def test_a_delta_whose_own_header_spells_them_can_be_applied(tmp_path):
    def delta(name):
        for folder, seed in (("base", 1), ("target", 2)):
            write(tmp_path / folder / "model.safetensors", {name: ("F16", weights("F16", (3, 4), seed))})
        shutil.rmtree(tmp_path / "delta", ignore_errors=True)
        good("make-delta", tmp_path / "base", tmp_path / "target", tmp_path / "delta")
        return next((tmp_path / "delta").glob("delta-*")).read_bytes()

    length = int.from_bytes(delta("w")[:8], "little")
    assert delta("w" * (1 + 0x4B50 - length)).startswith(b"PK")
    good("apply-delta", tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "target")


def test_files_that_a_model_names_come_before_others_of_any_kind(tmp_path):
    torch = pytest.importorskip("torch")
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    tensors = {name: torch.from_numpy(array.copy()) for name, (_, array) in model(tmp_path / "again", seed=1).items()}
    (base / "model.safetensors").rename(base / "stray.safetensors")  # not what transformers looks for
    write(base / "stray.safetensors", {"model.norm": ("F16", weights("F16", (64,), 9))})
    torch.save(tensors, base / "pytorch_model.bin")
    good("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(target)


def test_an_index_that_names_nothing_or_leads_out_of_the_folder_is_refused(tmp_path):
    _, target = pair(tmp_path)
    shutil.copy(target / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (target / "model.safetensors").unlink()
    for files in ({}, {"w": "../elsewhere.safetensors"}, {"w": str(tmp_path / "elsewhere.safetensors")}, {"w": 1}):
        (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
        error = bad("export", target, "--to", "safetensors", "-o", tmp_path / "out")
        assert "model.safetensors.index.json: not an index of weight files" in error


def test_of_a_tensor_in_two_files_the_last_counts_as_for_transformers_and_train(tmp_path):
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    from vtools.train.shard import Weights

    folder = tiny.make(tmp_path / "model", tied=False)
    right = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    (folder / "model.safetensors").unlink()
    save_file({name: right[name] * 3}, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    save_file(right, folder / "model-00002-of-00002.safetensors", {"format": "pt"})
    places = dict.fromkeys(right, "model-00002-of-00002.safetensors") | {name: "model-00001-of-00002.safetensors"}
    places["other"] = "model-00002-of-00002.safetensors"
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()[name]
    good("export", folder, "--to", "safetensors", "-o", tmp_path / "out")
    exported = load_file(tmp_path / "out/model.safetensors")[name]
    trained = Weights(folder).read(name, tuple(exported.shape), 0, len(exported))
    assert loaded.equal(right[name]) and exported.equal(loaded) and trained.equal(loaded)


def test_train_too_takes_a_model_saved_again_beside_the_shards_of_before(tmp_path):
    pytest.importorskip("torch")
    from vtools.train.shard import Weights

    arrays = model(tmp_path / "base", seed=1)
    write(tmp_path / "base/model-00001-of-00001.safetensors", {"model.norm": ("F16", weights("F16", (64,), 9))})
    stale = {"metadata": {}, "weight_map": {"model.norm": "model-00001-of-00001.safetensors"}}
    (tmp_path / "base/model.safetensors.index.json").write_text(json.dumps(stale))
    read = Weights(tmp_path / "base").read("model.norm", (64,), 0, 64)
    assert read.numpy().tobytes() == arrays["model.norm"][1].tobytes()


def test_the_deltas_of_a_published_model_keep_their_folders_and_are_loadable_under_any_name(tmp_path):
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    base = tiny.make(tmp_path / "base", tied=False)
    tensors = load_file(base / "model.safetensors")
    delta = {name: tensor.new_full(tensor.shape, 1e-3) for name, tensor in tensors.items()}
    wanted = {name: tensors[name] + delta[name] for name in delta}
    shutil.copytree(base, tmp_path / "parts")
    (tmp_path / "parts/model.safetensors").unlink()
    cut = sorted(delta)[:10]
    places = {name: f"{'a' if name in cut else 'b'}/model.safetensors" for name in delta}
    for folder in ("a", "b"):
        (tmp_path / "parts" / folder).mkdir()
        part = {name: tensor for name, tensor in delta.items() if places[name].startswith(folder)}
        save_file(part, tmp_path / "parts" / folder / "model.safetensors", {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (tmp_path / "parts/model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copytree(base, tmp_path / "single")
    (tmp_path / "single/model.safetensors").unlink()
    save_file(delta, tmp_path / "single/vicuna-diff.safetensors", {"format": "pt"})
    for name in ("parts", "single"):
        (tmp_path / name / "flax_model.msgpack").write_bytes(b"another library's")
        good("apply-delta", base, tmp_path / name, tmp_path / f"{name}.out")
        assert "flax_model.msgpack" not in names(tmp_path / f"{name}.out")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}.out").state_dict()
        assert all(loaded[name].equal(wanted[name]) for name in wanted)
    error = bad("apply-delta", base, tmp_path / "single/vicuna-diff.safetensors", tmp_path / "third", "--template", "chatml", code=2)  # fmt: skip
    assert "give the folder of the delta" in error


def test_what_lies_between_the_tensors_of_a_file_does_not_fill_the_memory(tmp_path):
    torch = pytest.importorskip("torch")
    base, target = tmp_path / "base", tmp_path / "target"
    for folder, seed in ((base, 1), (target, 2)):
        tensors = {name: torch.from_numpy(array.copy()) for name, (_, array) in model(folder, seed=seed).items()}
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    torch.save({"model": tensors, "optimizer": {0: torch.zeros(50_000_000)}}, target / "pytorch_model-state.bin")
    for arguments in (["make-delta", base, target, tmp_path / "delta"], ["apply-delta", base, tmp_path / "delta", tmp_path / "out"]):  # fmt: skip
        assert peak(*arguments) < 128e6
    assert contents(tmp_path / "out") == contents(target)


def test_a_model_of_which_no_tensor_is_like_one_of_the_other_is_not_its_base(tmp_path):
    _, target = pair(tmp_path)
    write(tmp_path / "other/model.safetensors", {"w": ("F16", weights("F16", (3, 4), 1))})
    error = bad("make-delta", tmp_path / "other", target, tmp_path / "delta")
    assert "other: no tensor has the name and shape of one in" in error
