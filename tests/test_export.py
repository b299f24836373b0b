"""export to GGUF: what is written, whole or not at all, and what it costs."""

import contextlib
import json
import math
import os
import shutil
import struct

import pytest
import tiny
from checkpoints import halted
from exporting import QUANTISED, change, expected_tensors, metadata, model, stored
from running import bad, command, execute, good, on_a_disk_of, peak, run, start, wait_until

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

from vtools.export import blocks, gguf_file, tensor_names  # noqa: E402

# What is written


def test_the_file_holds_every_tensor_with_heads_interleaved_and_what_the_model_is(byte_level, tmp_path):
    out = tmp_path / "model.gguf"
    *lines, totals = good("export", byte_level, "-o", out)
    expected, found, keys = expected_tensors(byte_level, 4, 2), stored(out), metadata(out)
    assert found.keys() == expected.keys() == {line["tensor"] for line in lines}
    for name, array in expected.items():
        want = array.astype("<f2" if array.ndim == 2 else "<f4")
        assert np.array_equal(found[name].data, want), name
    assert totals == {"tensors": len(expected), "bytes": out.stat().st_size, "type": "f16", "out": str(out)}
    assert {line["type"] for line in lines} == {"f16", "f32"} and all(line["ms"] >= 0 for line in lines)
    assert keys["general.architecture"] == "llama" and keys["general.file_type"] == 1
    assert keys["general.name"] == "model"
    assert (keys["llama.block_count"], keys["llama.attention.head_count"], keys["llama.attention.head_count_kv"]) == (
        2,
        4,
        2,
    )
    assert (keys["llama.embedding_length"], keys["llama.feed_forward_length"]) == (64, 128)
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert keys["tokenizer.chat_template"] == tiny.TEMPLATE
    assert keys["tokenizer.ggml.tokens"][keys["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert keys["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]


def test_pickled_weights_and_a_gguf_file_give_what_safetensors_give(byte_level, tmp_path):
    from safetensors.torch import load_file

    folder = shutil.copytree(byte_level, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    good("export", byte_level, "--type", "f32", "-o", tmp_path / "a.gguf")
    good("export", folder, "--type", "f32", "-o", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    good("export", tmp_path / "a.gguf", "--type", "f32", "-o", tmp_path / "c.gguf")
    first, last = stored(tmp_path / "a.gguf"), stored(tmp_path / "c.gguf")
    assert first.keys() == last.keys() and all(np.array_equal(first[name].data, last[name].data) for name in first)


@pytest.mark.parametrize("kind", [*QUANTISED, "bf16", "f32", *tensor_names.MIXES])
def test_blocks_of_rows_and_threads_give_the_bytes_of_whole_tensors(byte_level, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr(blocks, "BLOCK", 3000)
    files = [tmp_path / f"{jobs}.gguf" for jobs in (1, 3)]
    for jobs, file in zip((1, 3), files, strict=True):
        gguf_file.write(
            byte_level, "model", file, kind=kind, template=None, jobs=jobs, force=False, quiet=True, dry_run=False
        )
    assert files[0].read_bytes() == files[1].read_bytes()
    found = stored(files[0])
    for name, array in expected_tensors(byte_level, 4, 2).items():
        wanted = found[name].tensor_type
        if wanted.name.endswith("_K"):
            continue  # no row of this model is long enough: test_export_k_quants has their bytes
        assert np.asarray(found[name].data).tobytes() == np.asarray(gguf.quants.quantize(array, wanted)).tobytes(), name
        if array.ndim == 1:
            assert wanted.name == "F32"
        elif kind not in tensor_names.MIXES:
            assert wanted.name.lower() == ("q8_0" if name == "output.weight" and kind.startswith("q") else kind), name


def test_rows_that_blocks_of_32_do_not_divide_stay_f16(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "odd")
    model(folder, vocab_size=400, hidden_size=96, intermediate_size=72, num_attention_heads=4)
    good("export", folder, "--type", "q4_0", "-o", tmp_path / "odd.gguf")
    found = stored(tmp_path / "odd.gguf")
    assert found["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert found["blk.0.ffn_up.weight"].tensor_type.name == "Q4_0"
    assert (
        "3 matrices stay f16" in run("export", folder, "--type", "q4_0", "--force", "-o", tmp_path / "odd.gguf").errors
    )


def test_a_dry_run_tells_the_exact_size_and_writes_nothing(byte_level, tmp_path):
    for kind in ("f16", "q4_k_m", "q5_1"):
        out = tmp_path / f"{kind}.gguf"
        *planned, told = good("export", byte_level, "-n", "--type", kind, "-o", out)
        assert told["dry_run"] and not list(tmp_path.glob(f"*{kind}*"))
        *lines, totals = good("export", byte_level, "--type", kind, "-o", out)
        assert told["bytes"] == totals["bytes"] == out.stat().st_size
        assert planned == [{key: value for key, value in line.items() if key != "ms"} for line in lines]


def test_a_killed_run_leaves_no_file_and_the_next_one_finishes(byte_level, tmp_path):
    folder, out = shutil.copytree(byte_level, tmp_path / "model"), tmp_path / "out.gguf"
    model(folder, vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=12)
    part = tmp_path / ".out.gguf.part"
    for lines in (1, 20, 40):
        with halted("export", folder, "--type", "f32", "-o", out, lines=lines) as running:
            running.kill()
            running.communicate(timeout=60)
        assert part.exists() and not out.exists()
    *_, totals = good("export", folder, "--type", "f32", "-o", out)
    assert out.stat().st_size == totals["bytes"] and not part.exists()
    good("export", folder, "--type", "f32", "-o", tmp_path / "other.gguf")
    assert (tmp_path / "other.gguf").read_bytes() == out.read_bytes()


def test_an_existing_file_is_replaced_only_when_told(byte_level, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    assert "--force" in bad("export", byte_level, "-o", out)
    assert out.read_text() == "mine"
    good("export", byte_level, "-o", out, "--force")
    assert out.read_bytes()[:4] == b"GGUF"


def test_the_exported_file_itself_a_pipe_and_a_single_file_of_weights_are_refused(byte_level, tmp_path):
    out = tmp_path / "new" / "out.gguf"
    good("export", byte_level, "-o", out)  # makes the folder
    before = out.read_bytes()
    assert "is the model to be exported" in bad("export", out, "--type", "q8_0", "--force", "-o", out, code=2)
    assert out.read_bytes() == before
    assert "pipe" in bad("export", byte_level, "-o", "-", code=2, cwd=tmp_path)
    assert "pipe" in bad("export", byte_level, "--to", "safetensors", "-o", "-", code=2, cwd=tmp_path)
    assert "name its folder" in bad("export", byte_level / "model.safetensors", "-o", tmp_path / "more.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_a_file_of_the_model_is_never_replaced_but_a_gguf_file_beside_it_is(byte_level, tmp_path):
    stored, folder = shutil.copytree(byte_level, tmp_path / "stored"), tmp_path / "model"
    folder.mkdir()
    for path in stored.iterdir():  # as the hub's cache does
        (folder / path.name).symlink_to(path)
    (folder / "README.md").write_text("mine")
    before = tiny.tree(folder)
    for out in (
        folder / "tokenizer.json", folder / "README.md", folder / "model.safetensors", stored / "tokenizer.json"
    ):  # fmt: skip
        assert "is part of the model" in bad("export", folder, "--force", "-o", out, code=2)
    assert tiny.tree(folder) == before
    for _ in range(2):
        good("export", folder, "--force", "-o", folder / "model.gguf")
    assert (folder / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_a_model_that_changes_while_it_is_read_gives_no_file(byte_level, tmp_path):
    folder, out = shutil.copytree(byte_level, tmp_path / "model"), tmp_path / "out.gguf"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:  # a full pipe: the command stops before the line of its first tensor
            os.write(writer, bytes(1))
    os.set_blocking(writer, True)
    with start("export", folder, "-o", out, stdout=writer) as process:
        os.close(writer)
        wait_until(lambda: (tmp_path / ".out.gguf.part").exists() or process.poll() is not None)
        with open(folder / "model.safetensors", "r+b") as stream:
            stream.seek(-2, os.SEEK_END)
            stream.write(b"\0\0")
        with open(reader, "rb") as stream:
            stream.read()
        error = process.communicate(timeout=250)[1].decode()
    assert process.returncode == 1 and "changed while it was read" in error and len(error.splitlines()) == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_full_disk_is_one_line_and_leaves_nothing(byte_level, tmp_path):
    for size, said in (("100k", "the disk has"), ("9m,nr_inodes=1", "the disk is full")):
        done = on_a_disk_of(size, command("export", byte_level, "-o", "small/out.gguf"), tmp_path)
        assert done.returncode == 1 and said in done.errors and len(done.errors.splitlines()) == 1, done.errors


def test_a_write_that_fails_is_one_line_and_leaves_nothing(byte_level, tmp_path):
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "-"]
    done = execute([*limited, *command("export", byte_level, "-o", "out.gguf")], cwd=tmp_path)
    assert done.returncode == 1 and len(done.errors.splitlines()) == 1, done.errors
    assert not list(tmp_path.iterdir())


def test_llama_quantize_makes_the_k_quants_where_it_is_installed(byte_level, tmp_path):
    tools, out = tmp_path / "bin", tmp_path / "out.gguf"
    tools.mkdir()
    program = tools / "llama-quantize"  # stands in for llama.cpp's: the result is the file it was given
    program.write_text('#!/bin/sh\necho "$3 $4" > "$0.log"\ncp "$1" "$2"\n')
    program.chmod(0o755)
    env = {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = run("export", byte_level, "--type", "q4_k_m", "-o", out, env=env)
    assert done.returncode == 0, done.errors
    assert (tools / "llama-quantize.log").read_text() == "Q4_K_M 2\n"
    assert json.loads(done.stdout.splitlines()[-1])["with"] == str(program)
    assert stored(out)["blk.0.attn_q.weight"].tensor_type.name == "F16"
    program.write_text("#!/bin/sh\necho it hurts >&2\nexit 3\n")
    done = run("export", byte_level, "--type", "q4_k_m", "-o", tmp_path / "other.gguf", env=env)
    assert done.returncode == 1 and "it hurts" in done.errors and "exit status 3" in done.errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "out.gguf"]


# What it costs


def sparse(folder, layers):
    """A model of zeros that takes no space on disk: 50 MB per layer."""
    hidden, inner = 1024, 7168
    shapes = {
        "model.embed_tokens.weight": [400, hidden],
        "model.norm.weight": [hidden],
        "lm_head.weight": [400, hidden],
    }
    for layer in range(layers):
        for part, shape in {
            "input_layernorm": [hidden], "post_attention_layernorm": [hidden], "self_attn.q_proj": [hidden, hidden],
            "self_attn.k_proj": [hidden, hidden], "self_attn.v_proj": [hidden, hidden], "self_attn.o_proj": [hidden, hidden],
            "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner],
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    header, end = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    os.truncate(folder / "model.safetensors", 8 + len(raw) + end)
    change(folder, vocab_size=400, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=8,
           num_key_value_heads=8, head_dim=128)  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q4_0", "q4_k_m"])
def test_memory_does_not_grow_with_the_model(byte_level, tmp_path, kind):
    used = []
    for layers in (2, 20):
        folder = sparse(shutil.copytree(byte_level, tmp_path / str(layers)), layers)
        used.append(peak("export", folder, "--type", kind, "-o", tmp_path / f"{layers}.gguf"))
    print(f"{kind}: {used[0] / 1e6:.0f} and {used[1] / 1e6:.0f} MB for 0.1 and 1 GB")
    assert used[1] < used[0] + 20e6 and used[1] < 250e6
