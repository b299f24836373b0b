"""export to safetensors: the same bits in other shards, and whole or not at all."""

import json
import shutil

import pytest
import tiny
from checkpoints import halted
from exporting import model
from running import bad, good

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def tensors_of(folder):
    from safetensors.torch import load_file

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def test_resharding_there_and_back_gives_the_same_bits(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded.save_pretrained(folder)
    *lines, totals = good(
        "export", folder, "--to", "safetensors", "--dtype", "fp32", "--max-shard", "100kB", "-o", tmp_path / "wide"
    )
    files = sorted((tmp_path / "wide").glob("*.safetensors"))
    assert len(files) == totals["files"] > 2 and all(file.stat().st_size <= 100_000 for file in files)
    assert sum(file.stat().st_size for file in files) == totals["bytes"]
    assert {line["type"] for line in lines} == {"fp32"}
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    assert wide.dtype == torch.float32
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(wide.state_dict()[name], tensor.float()), name
    good("export", tmp_path / "wide", "--to", "safetensors", "--dtype", "bf16", "-j", "3", "-o", tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(path.name for path in folder.iterdir())
    before, after = tensors_of(folder), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )


def test_safetensors_get_the_bits_of_torch_and_keep_what_is_no_float(tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    for name, dtype, largest in (("fp16", torch.float16, 4), ("bf16", torch.bfloat16, 9)):
        scales = 10 ** torch.linspace(-9, largest, 1000)
        source = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0)) * scales
        save_file({"a": source, "n": torch.arange(5), "e": torch.empty(0, 4)}, folder / "model.safetensors")
        good("export", folder, "--to", "safetensors", "--dtype", name, "-o", tmp_path / name)
        found = tensors_of(tmp_path / name)
        assert torch.equal(found["a"].view(torch.int16), source.to(dtype).view(torch.int16))
        assert torch.equal(found["n"], torch.arange(5)) and found["e"].shape == (0, 4)


def test_a_killed_resharding_leaves_no_folder_and_the_next_one_continues_it(byte_level, tmp_path):
    folder, out = shutil.copytree(byte_level, tmp_path / "model"), tmp_path / "out"
    model(folder, vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=8)
    arguments = [folder, "--to", "safetensors", "--dtype", "bf16", "--max-shard", "300kB", "-o"]
    with halted("export", *arguments, out) as running:
        running.kill()
        running.communicate(timeout=60)
    assert (tmp_path / "out.partial").exists() and not out.exists()
    *lines, totals = good("export", *arguments, out)
    assert 0 < totals["reused"] < len(lines)
    *others, fresh = good("export", *arguments, tmp_path / "other")
    assert fresh["reused"] == 0 and len(others) == len(lines)
    assert tiny.tree(out) == tiny.tree(tmp_path / "other")
    assert not (tmp_path / "out.partial").exists()


def test_a_folder_is_refused_as_in_the_other_tools(byte_level, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert "--force" in bad("export", byte_level, "--to", "safetensors", "-o", out)
    assert (out / "mine").read_text() == "mine"
    assert "not a size" in bad(
        "export", byte_level, "--to", "safetensors", "--max-shard", "5 apples", "-o", tmp_path / "x", code=2
    )
    assert "more than --max-shard" in bad(
        "export", byte_level, "--to", "safetensors", "--max-shard", "9kB", "-o", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()
