"""export: what llama.cpp and transformers make of the files is what they make of the model."""

import contextlib
import ctypes
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
import unicodedata

import llama_cpp
import pytest
import tiny
from checkpoints import halted
from conftest import ROOT

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from vtools.export import blocks, gguf_file, tensor_names  # noqa: E402
from vtools.models import pretokenizer  # noqa: E402
from vtools.models.published_templates import SOURCES  # noqa: E402
from vtools.models.reference import model_folder  # noqa: E402
from vtools.models.tokenizer import load_tokenizer  # noqa: E402

VTOOLS = [sys.executable, "-m", "vtools", "export"]
QUANTISED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
needs_llama_cpp = pytest.mark.skipif(llama_cpp.library() is None, reason="the package xllamacpp is not installed")
PROMPTS = (
    "The capital of France is", "Once upon a time there was", "def fibonacci(n):\n", "Größe, naïve café:", "1, 2, 3, 4,",
    "The three laws of motion are", "Dear Sir or Madam,\n\n", "Water boils at", "I don't think that you'll", "東京は",
)  # fmt: skip
TEXTS = (
    *PROMPTS, "x  two   spaces\n\n\n\ttabs \r\n end ", "12345678 a1b22c333 ３４", "it's IT'S we'Ve I'LL can't",
    "🙂👍🏽 e\u0301 \u00a0nbsp", "foo_bar(x[1]) != {'k': -2.5e10};", "HelloWorld helloWORLD ПриветМир", "a</s>b<s>[PAD]c",
)  # fmt: skip
CHATS = (
    [{"role": "user", "content": "Hi, wörld  é 東"}],
    [
        {"role": "user", "content": "What is 2+2?\n"},
        {"role": "assistant", "content": "It's 4."},
        {"role": "user", "content": "  Why?"},
    ],
)


def vtools(*arguments, **options):
    return subprocess.run(
        [*VTOOLS, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        **{"env": tiny.environment(), **options},
    )


def good(*arguments):
    done = vtools(*arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def bad(*arguments, code=1, **options):
    done = vtools(*arguments, **options)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def change(folder, name="config.json", **values):
    """Set keys of a JSON file; None takes a key away."""
    config = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def model(folder, **settings):
    """A small random model beside whatever tokenizer is in the folder; it may be taught some ids, to prefer some tokens."""
    kind, teach = settings.pop("kind", "Llama"), settings.pop("teach", None)
    shape = {
        "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**shape, **settings})
    made = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():  # norms and biases that differ from 1 and 0, or an export that loses them would pass
        for name, tensor in made.named_parameters():
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * (0.3 if name.endswith("bias") else 0.1))
    if teach:
        optimizer = torch.optim.AdamW(made.parameters(), 3e-3)
        for step in range(60):
            places = torch.randint(len(teach) - 64, (8,), generator=torch.Generator().manual_seed(step)).tolist()
            rows = torch.tensor([teach[place : place + 64] for place in places])
            made(rows, labels=rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory):
    """A Llama with grouped queries and a SentencePiece vocabulary with a [PAD] row, saved as LLaMA was: tokenizer.model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    text = [*(ROOT / "LICENSE").read_text().splitlines(), "Größe, naïve café, 東京タワー, привет мир"] * 3
    raw = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in text if line.strip()]), model_writer=raw, vocab_size=1000,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.99, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(raw.getvalue())
    (folder / "added_tokens.json").write_text('{"[PAD]": 1000}')
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, **special}
    about = json.dumps({**settings, "chat_template": SOURCES["vicuna-v1.1"]})
    (folder / "tokenizer_config.json").write_text(about)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(about)  # saving forgets half of it
    return model(folder, teach=tokenizer("\n".join(text)).input_ids, vocab_size=1001)


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("byte-level") / "model", tied=False)


@pytest.fixture(scope="session")
def real(smollm2):
    """The real small model as a folder in bf16."""

    return model_folder(smollm2)


def reference(folder, rows):
    """transformers' log-probabilities after every token of the rows, in fp32."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [torch.log_softmax(loaded(torch.tensor([row])).logits[0].double(), -1) for row in rows]


def continued(folder, prompts, steps):
    """Prompts of ids with the tokens that transformers finds most probable after them."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(steps):
            with torch.no_grad():
                ids = torch.cat([ids, loaded(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        rows.append(ids[0].tolist())
    return rows


def compare(folder, file, prompts, steps=24):
    """How many greedy steps were judged, and how many agree; the largest difference of the best tokens' log-probabilities."""
    rows = continued(folder, prompts, steps)
    expected = reference(folder, rows)
    found = llama_cpp.ask(file, rows=rows)["tops"]
    judged = equal = 0
    worst = 0.0
    for prompt, row, mine, theirs in zip(prompts, rows, expected, found, strict=True):
        first = theirs[len(prompt) - 1]
        worst = max(worst, *(abs(mine[len(prompt) - 1][number].item() - value) for number, value in first))
        for place in range(len(prompt) - 1, len(row) - 1):
            best = mine[place].topk(2).values
            if best[0] - best[1] < 0.2:
                break
            judged += 1
            equal += theirs[place][0][0] == row[place + 1]
    return judged, equal, worst


def metadata(file):
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def stored(file):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def permuted(weights, heads):
    """Each head's two halves interleaved, written down from the definition: row i of half s becomes row 2 i + s."""
    size = len(weights) // heads
    order = [head * size + s * (size // 2) + i for head in range(heads) for i in range(size // 2) for s in (0, 1)]
    return weights[order]


def expected_tensors(folder, heads, key_heads):
    """GGUF names and fp32 arrays of a model's tensors."""
    from safetensors.torch import load_file

    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    }  # fmt: skip
    expected = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            array = permuted(array, heads if ".q_proj." in name else key_heads)
        stem, _, kind = name.rpartition(".")
        prefix, _, part = stem.removeprefix("model.layers.").partition(".") if "layers." in stem else ("", "", stem)
        expected[(f"blk.{prefix}." if prefix else "") + f"{names[part]}.{kind}"] = array
    return expected


# What is written


def test_the_file_holds_every_tensor_with_heads_interleaved_and_what_the_model_is(byte_level, tmp_path):
    out = tmp_path / "model.gguf"
    *lines, totals = good(byte_level, "-o", out)
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
    good(byte_level, "--type", "f32", "-o", tmp_path / "a.gguf")
    good(folder, "--type", "f32", "-o", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    env = tiny.environment(VTOOLS_CACHE=str(tmp_path / "cache"))
    again = vtools(tmp_path / "a.gguf", "--type", "f32", "-o", tmp_path / "c.gguf", env=env)
    assert again.returncode == 0, again.stderr
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
    good(folder, "--type", "q4_0", "-o", tmp_path / "odd.gguf")
    found = stored(tmp_path / "odd.gguf")
    assert found["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert found["blk.0.ffn_up.weight"].tensor_type.name == "Q4_0"
    assert "3 matrices stay f16" in vtools(folder, "--type", "q4_0", "--force", "-o", tmp_path / "odd.gguf").stderr


def test_a_dry_run_tells_the_exact_size_and_writes_nothing(byte_level, tmp_path):
    for kind in ("f16", "q4_k_m", "q5_1"):
        out = tmp_path / f"{kind}.gguf"
        *planned, told = good(byte_level, "-n", "--type", kind, "-o", out)
        assert told["dry_run"] and not list(tmp_path.glob(f"*{kind}*"))
        *lines, totals = good(byte_level, "--type", kind, "-o", out)
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
    *_, totals = good(folder, "--type", "f32", "-o", out)
    assert out.stat().st_size == totals["bytes"] and not part.exists()
    good(folder, "--type", "f32", "-o", tmp_path / "other.gguf")
    assert (tmp_path / "other.gguf").read_bytes() == out.read_bytes()


def test_an_existing_file_is_replaced_only_when_told(byte_level, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    assert "--force" in bad(byte_level, "-o", out)
    assert out.read_text() == "mine"
    good(byte_level, "-o", out, "--force")
    assert out.read_bytes()[:4] == b"GGUF"


def test_the_exported_file_itself_a_pipe_and_a_single_file_of_weights_are_refused(byte_level, tmp_path):
    out = tmp_path / "new" / "out.gguf"
    good(byte_level, "-o", out)  # makes the folder
    before = out.read_bytes()
    assert "is the model to be exported" in bad(out, "--type", "q8_0", "--force", "-o", out, code=2)
    assert out.read_bytes() == before
    assert "pipe" in bad(byte_level, "-o", "-", code=2, cwd=tmp_path)
    assert "pipe" in bad(byte_level, "--to", "safetensors", "-o", "-", code=2, cwd=tmp_path)
    assert "name its folder" in bad(byte_level / "model.safetensors", "-o", tmp_path / "more.gguf")
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
        assert "is part of the model" in bad(folder, "--force", "-o", out, code=2)
    assert tiny.tree(folder) == before
    for _ in range(2):
        good(folder, "--force", "-o", folder / "model.gguf")
    assert (folder / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_a_model_that_changes_while_it_is_read_gives_no_file(byte_level, tmp_path):
    folder, out = shutil.copytree(byte_level, tmp_path / "model"), tmp_path / "out.gguf"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:  # a full pipe: the command stops before the line of its first tensor
            os.write(writer, bytes(1))
    os.set_blocking(writer, True)
    process = subprocess.Popen(
        [*VTOOLS, folder, "-o", out], env=tiny.environment(), stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    while process.poll() is None and not (tmp_path / ".out.gguf.part").exists():
        time.sleep(0.001)
    with open(folder / "model.safetensors", "r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\0\0")
    with open(reader, "rb") as stream:
        stream.read()
    error = process.communicate(timeout=250)[1]
    assert process.returncode == 1 and "changed while it was read" in error and len(error.splitlines()) == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_full_disk_is_one_line_and_leaves_nothing(byte_level, tmp_path):
    (tmp_path / "small").mkdir()
    script = 'mount -t tmpfs -o size=$1 none small && shift && ("$@"; code=$?; ls -A small >&2; exit $code)'
    inside = ["unshare", "-rm", "sh", "-c", script, "-"]
    if subprocess.run([*inside, "1m", "true"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    for size, said in (("100k", "the disk has"), ("9m,nr_inodes=1", "the disk is full")):
        command = [*inside, size, *VTOOLS, str(byte_level), "-o", "small/out.gguf"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=tiny.environment())
        assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_write_that_fails_is_one_line_and_leaves_nothing(byte_level, tmp_path):
    command = ["bash", "-c", 'ulimit -f 100; exec "$@"', "-", *VTOOLS, str(byte_level), "-o", "out.gguf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=tiny.environment())
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


# What is refused


def test_what_cannot_be_exported_is_one_line_that_says_why(byte_level, tmp_path):
    def broken(name, **config):
        folder = shutil.copytree(byte_level, tmp_path / name)
        change(folder, **config)
        return folder

    out = tmp_path / "out.gguf"
    assert "'gemma2'" in bad(broken("gemma", model_type="gemma2"), "-o", out)
    assert "'longrope'" in bad(broken("long", rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "-o", out)
    assert "'dynamic'" in bad(
        broken("dynamic", rope_scaling={"type": "dynamic", "factor": 2}, rope_parameters=None), "-o", out
    )
    yarn = {"rope_type": "yarn", "factor": 2, "rope_theta": 1e4, "beta_slow": 2}
    assert "beta_slow 2" in bad(broken("yarn", rope_parameters=yarn), "-o", out)
    assert "no hidden_size" in bad(broken("keys", hidden_size=None), "-o", out)
    llama3 = {**ROPE["llama3"], "rope_theta": 1e4}
    assert "'llama3'" in bad(broken("qwen2", model_type="qwen2", rope_parameters=llama3), "-o", out)
    for context in (1 << 33, -1):
        error = bad(broken(f"context{context}", max_position_embeddings=context), "-o", out)
        assert f"context_length {context}; GGUF" in error
    assert "hidden_act" in bad(broken("act", hidden_act="gelu"), "-o", out)
    assert "config.json asks for [401, 64]" in bad(broken("rows", vocab_size=401), "-o", out)
    assert "no tensor model.layers.2" in bad(broken("layers", num_hidden_layers=3), "-o", out)
    assert "layers.1." in bad(broken("fewer", num_hidden_layers=1), "-o", out)
    folder = broken("tokens")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in bad(folder, "-o", out)
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
    assert "ids up to 318, but the embedding only 318 rows" in bad(folder, "-o", out)
    folder = broken("merges")
    without = {**tokenizer, "model": {**tokenizer["model"], "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(without))
    assert "no merges" in bad(folder, "-o", out)
    folder = broken("split")
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "llama-bpe" in bad(folder, "-o", out)
    assert "--to safetensors" in bad(byte_level, "--dtype", "fp16", "-o", out, code=2)
    assert "no such template" in bad(byte_level, "--template", "none", "-o", out)
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob(".*"))


def test_a_tensor_that_is_not_known_is_named_and_old_buffers_are_passed_over(byte_level, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(byte_level, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**weights, buffer: torch.ones(8)}, folder / "model.safetensors")
    assert len(good(folder, "-o", tmp_path / "a.gguf")) == len(weights) + 1
    save_file({**weights, "model.layers.0.mlp.experts.weight": torch.ones(8)}, folder / "model.safetensors")
    assert "model.layers.0.mlp.experts.weight" in bad(folder, "-o", tmp_path / "b.gguf")


def test_a_base_model_is_exported_without_a_template_and_that_is_said(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    change(folder, "tokenizer_config.json", chat_template=None)
    done = vtools(folder, "-o", tmp_path / "out.gguf")
    assert done.returncode == 0 and "no chat template" in done.stderr
    assert "tokenizer.chat_template" not in metadata(tmp_path / "out.gguf")
    good(folder, "--template", "chatml", "-o", tmp_path / "chatml.gguf")
    assert metadata(tmp_path / "chatml.gguf")["tokenizer.chat_template"] == SOURCES["chatml"]


def test_attention_that_llama_cpp_does_not_limit_is_told(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    change(folder, model_type="mistral", sliding_window=64)
    done = vtools(folder, "-o", tmp_path / "out.gguf")
    assert done.returncode == 0 and "64 tokens back" in done.stderr


def test_the_token_that_ends_an_answer_is_told_where_it_is_not_the_end_of_text(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    change(folder, "tokenizer_config.json", eos_token="<|endoftext|>")
    good(folder, "-o", tmp_path / "out.gguf")
    keys = metadata(tmp_path / "out.gguf")
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]) == (0, 2)


def test_a_value_that_f16_cannot_hold_is_refused_by_name(byte_level, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(byte_level, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e5
    save_file(weights, folder / "model.safetensors")
    assert "model.layers.1.mlp.up_proj.weight" in bad(folder, "-o", tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf"))
    good(folder, "--type", "bf16", "-o", tmp_path / "out.gguf")
    resharding = ("--to", "safetensors", "-o", tmp_path / "folder")
    assert "model.layers.1.mlp.up_proj.weight" in bad(folder, "--dtype", "fp16", *resharding)
    assert not (tmp_path / "folder").exists()
    good(folder, "--dtype", "bf16", *resharding)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = math.nan
    save_file(weights, folder / "model.safetensors")
    for kind in ("f16", "f32", "q8_0", "q4_k_m"):
        error = bad(folder, "--type", kind, "-o", tmp_path / "more.gguf")
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
    done = vtools(folder, "--type", kind, "-o", tmp_path / "small.gguf")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1, done.stderr
    found = stored(tmp_path / "small.gguf")["blk.1.ffn_up.weight"]
    assert abs(gguf.quants.dequantize(found.data, found.tensor_type)[3]).max() < 1e-30
    weights[name][3, 4] = largest
    save_file(weights, folder / "model.safetensors")
    assert f"{name}: a value beyond the range of " in bad(folder, "--type", kind, "-o", tmp_path / "out.gguf")
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
        good(folder, "--type", "f32", "-o", tmp_path / f"{number}.gguf")
        found = stored(tmp_path / f"{number}.gguf")
        assert ("output.weight" in found) == kept
        assert not kept or np.array_equal(found["output.weight"].data, head.numpy())


def test_llama_quantize_makes_the_k_quants_where_it_is_installed(byte_level, tmp_path):
    tools, out = tmp_path / "bin", tmp_path / "out.gguf"
    tools.mkdir()
    program = tools / "llama-quantize"  # stands in for llama.cpp's: the result is the file it was given
    program.write_text('#!/bin/sh\necho "$3 $4" > "$0.log"\ncp "$1" "$2"\n')
    program.chmod(0o755)
    env = tiny.environment(PATH=f"{tools}:{os.environ['PATH']}")
    done = vtools(byte_level, "--type", "q4_k_m", "-o", out, env=env)
    assert done.returncode == 0, done.stderr
    assert (tools / "llama-quantize.log").read_text() == "Q4_K_M 2\n"
    assert json.loads(done.stdout.splitlines()[-1])["with"] == str(program)
    assert stored(out)["blk.0.attn_q.weight"].tensor_type.name == "F16"
    program.write_text("#!/bin/sh\necho it hurts >&2\nexit 3\n")
    done = vtools(byte_level, "--type", "q4_k_m", "-o", tmp_path / "other.gguf", env=env)
    assert done.returncode == 1 and "it hurts" in done.stderr and "exit status 3" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "out.gguf"]


# What llama.cpp makes of it


@needs_llama_cpp
def test_llama_cpp_continues_a_sentencepiece_model_as_transformers_does(sentencepiece_model, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentencepiece_model)
    good(sentencepiece_model, "-o", tmp_path / "f16.gguf")
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


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
PREPEND, SPACES = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
ONES = {"type": "Replace", "pattern": {"String": "1"}, "content": "2"}


@pytest.mark.parametrize("named, normal, before", [
    ("NFKC, Metaspace", [{"type": "NFKC"}], METASPACE),
    ("Replace, Prepend, Replace", [ONES, PREPEND, SPACES], None),
    ("Replace", [ONES], None),
    ("Prepend, Replace, Digits", [PREPEND, SPACES], {"type": "Digits", "individual_digits": True}),
    ("Digits, Metaspace", [], {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, METASPACE]}),
    ("Metaspace", [], {**METASPACE, "split": True}),
    ("Metaspace", [], {**METASPACE, "replacement": "_"}),
    ("nothing", [], None),
])  # fmt: skip
def test_a_sentencepiece_tokenizer_that_does_more_to_text_than_llama_cpp_is_refused(
    sentencepiece_model, tmp_path, named, normal, before
):
    folder = shutil.copytree(sentencepiece_model, tmp_path / "model")
    steps = {"normalizer": {"type": "Sequence", "normalizers": normal} if normal else None, "pre_tokenizer": before}
    setup = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**setup, **steps}))
    change(folder, "tokenizer_config.json", chat_template=None)
    assert f"prepares text by {named};" in bad(folder, "-o", tmp_path / "out.gguf")


@needs_llama_cpp
@pytest.mark.parametrize("normal, before", [
    ([PREPEND, SPACES], None),
    ([SPACES], None),
    ([], {"type": "Sequence", "pretokenizers": [METASPACE]}),
    ([], {**METASPACE, "prepend_scheme": "never"}),
])  # fmt: skip
def test_llama_cpp_reads_texts_as_every_way_to_mark_words_does(sentencepiece_model, tmp_path, normal, before):
    import tokenizers

    folder = shutil.copytree(sentencepiece_model, tmp_path / "model")
    steps = {"normalizer": {"type": "Sequence", "normalizers": normal} if normal else None, "pre_tokenizer": before}
    setup = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**setup, **steps}))
    good(folder, "-o", tmp_path / "out.gguf")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = llama_cpp.ask(tmp_path / "out.gguf", texts=TEXTS)["texts"]
    assert found == [encoding.ids for encoding in backend.encode_batch(list(TEXTS))]


@needs_llama_cpp
def test_a_tokenizer_that_marks_the_first_word_alone_gives_its_ids_in_chats_and_a_base_models_in_texts(
    sentencepiece_model, tmp_path
):
    folder = shutil.copytree(sentencepiece_model, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    change(folder, "tokenizer_config.json", legacy=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chats = [*CHATS, [{**turn, "content": turn["content"].strip()} for turn in CHATS[1]]]
    done = vtools(folder, "-o", tmp_path / "chat.gguf")
    assert done.returncode == 0 and "plain texts get different ids" in done.stderr
    assert llama_cpp.ask(tmp_path / "chat.gguf", chats=chats)["chats"] == [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats
    ]
    change(folder, "tokenizer_config.json", chat_template=None)
    done = vtools(folder, "-o", tmp_path / "base.gguf")
    assert done.returncode == 0 and "texts after control tokens get different ids" in done.stderr
    texts = [text for text in TEXTS if "</s>" not in text]
    assert llama_cpp.ask(tmp_path / "base.gguf", texts=texts)["texts"] == tokenizer(texts).input_ids


def test_added_tokens_that_llama_cpp_finds_elsewhere_are_told(byte_level, sentencepiece_model, tmp_path):
    import tokenizers

    for source in (byte_level, sentencepiece_model):
        folder = shutil.copytree(source, tmp_path / source.parent.name)
        for token, told in (
            (tokenizers.AddedToken("plain", normalized=True), False),
            (tokenizers.AddedToken("right", rstrip=True), True),
        ):
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            backend.add_tokens([token])
            backend.save(str(folder / "tokenizer.json"))
            model(folder, vocab_size=1003)
            done = vtools(folder, "-o", tmp_path / "out.gguf", "--force")
            assert done.returncode == 0, done.stderr
            assert ("texts with right may get different ids" in done.stderr) == told == ("rstrip" in done.stderr)
    change(folder, "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [PREPEND, SPACES]})
    setup = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**setup, "pre_tokenizer": None}))
    assert "texts with right, plain may" in vtools(folder, "-o", tmp_path / "out.gguf", "--force").stderr


@needs_llama_cpp
@pytest.mark.parametrize("scores", ["tokenizer.model", "merges"])
def test_llama_cpp_reads_texts_and_chats_as_a_sentencepiece_tokenizer_does(sentencepiece_model, tmp_path, scores):
    folder = shutil.copytree(sentencepiece_model, tmp_path / "model")
    (folder / {"tokenizer.model": "tokenizer.json", "merges": "tokenizer.model"}[scores]).unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    good(folder, "-o", tmp_path / "out.gguf")
    found = llama_cpp.ask(tmp_path / "out.gguf", texts=TEXTS, chats=CHATS)
    assert found["texts"] == tokenizer(list(TEXTS)).input_ids
    assert found["chats"] == [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in CHATS
    ]
    keys = metadata(tmp_path / "out.gguf")
    assert keys["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6] and keys["tokenizer.ggml.token_type"][1000] == 3


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@needs_llama_cpp
def test_the_llama_vocabulary_gets_vicunas_template_and_reads_as_sentencepiece_does(llama, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = shutil.copytree(llama, tmp_path / "model")
    model(folder, vocab_size=32001, hidden_size=64, num_hidden_layers=1)
    good(folder, "-o", tmp_path / "out.gguf")
    assert metadata(tmp_path / "out.gguf")["tokenizer.chat_template"] == SOURCES["vicuna-v1.1"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    plain = [text for text in TEXTS if "</s>" not in text]
    found = llama_cpp.ask(tmp_path / "out.gguf", texts=plain)["texts"]
    assert found == [[1, *pieces.encode(text)] for text in plain]


@needs_llama_cpp
@pytest.mark.parametrize("name", sorted(set(pretokenizer.NAMES.values())))
def test_llama_cpp_cuts_text_as_each_byte_level_tokenizer_does(tmp_path, name):
    import tokenizers
    from tokenizers import pre_tokenizers

    steps, _, whole = next(key for key, value in pretokenizer.NAMES.items() if value == name)
    known = {"gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False), "digits": pre_tokenizers.Digits(individual_digits=True),
             "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)}  # fmt: skip
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=whole))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [known.get(step) or pre_tokenizers.Split(tokenizers.Regex(step), "isolated") for step in steps]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([*(ROOT / "LICENSE").read_text().splitlines(), *TEXTS] * 3, trainer)
    folder = tmp_path / "model"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model(folder, vocab_size=904, hidden_size=64, num_hidden_layers=1)
    good(folder, "-o", tmp_path / "out.gguf")
    keys = metadata(tmp_path / "out.gguf")
    assert keys["tokenizer.ggml.pre"] == name and keys["tokenizer.ggml.tokens"][-1] == "[PAD903]"
    texts = [text + suffix for text in TEXTS for suffix in ("", "<|end|>x")]
    found = llama_cpp.ask(tmp_path / "out.gguf", texts=texts)["texts"]
    assert found == [encoding.ids for encoding in backend.encode_batch(texts)]
    # And back: the file as a model of ours cuts text the same; qwen2's own normal form is NFC, which llama.cpp passes over.
    back = load_tokenizer(str(tmp_path / "out.gguf")).backend
    composed = [number for number, text in enumerate(texts) if unicodedata.is_normalized("NFC", text)]
    assert [back.encode(texts[number]).ids for number in composed] == [found[number] for number in composed]


@needs_llama_cpp
def test_a_gguf_base_is_tokenized_as_llama_cpp_tokenizes_it(smollm2):
    ours = load_tokenizer(smollm2).backend
    texts = [*TEXTS, "Steps:\n\n1. one\n\n22. two, 3.14 and 1,000,000\n"]
    assert [ours.encode(text).ids for text in texts] == llama_cpp.ask(smollm2, texts=texts)["texts"]


def test_a_gguf_file_that_cuts_text_in_an_unknown_way_says_so(byte_level, tmp_path, capfd):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    change(folder, "tokenizer_config.json", bos_token="<|im_start|>")  # transformers 5.17 reads no file without one
    good(folder, "-o", tmp_path / "known.gguf")
    raw = (tmp_path / "known.gguf").read_bytes()
    assert raw.count(b"gpt-2") == 1
    (tmp_path / "unknown.gguf").write_bytes(raw.replace(b"gpt-2", b"gpt-9"))
    for name in ("known", "unknown"):
        model_folder(str(tmp_path / f"{name}.gguf"))
        assert ("llama.cpp's 'gpt-9': token ids may differ" in capfd.readouterr().err) == (name == "unknown")


ROPE = {
    "plain": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0},
    "yarn, attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5, "rope_theta": 10000.0},
    "yarn, scales": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.2, "rope_theta": 10000.0},
}  # fmt: skip


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
    good(folder, "--type", "f32", "-o", tmp_path / "old.gguf")
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


def test_biases_that_llama_cpp_has_no_place_for_are_refused_by_name(byte_level, tmp_path):
    folder = shutil.copytree(byte_level, tmp_path / "model")
    model(folder, vocab_size=318, kind="Qwen3", head_dim=32, attention_bias=True)
    assert "self_attn.k_proj.bias does not belong to a qwen3 model" in bad(folder, "-o", tmp_path / "out.gguf")
    model(folder, vocab_size=318, attention_bias=True)
    change(folder, model_type="qwen2")
    assert "self_attn.o_proj.bias does not belong to a qwen2 model" in bad(folder, "-o", tmp_path / "out.gguf")


def assert_equal_everywhere(folder, file):
    """In fp32, after each of 200 tokens, llama.cpp's best tokens have transformers' log-probabilities."""
    row = np.random.default_rng(0).integers(3, 1000, 200).tolist()
    good(folder, "--type", "f32", "-o", file)
    found = llama_cpp.ask(file, rows=[row])["tops"][0]
    worst = 0.0
    for mine, theirs in zip(reference(folder, [row])[0], found, strict=True):
        assert mine.max() - mine[theirs[0][0]] < 0.02
        worst = max(worst, *(abs(mine[number].item() - value) for number, value in theirs))
    print(f"{folder}: log-probabilities within {worst:.4f}")
    assert worst < 0.02


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_llama_cpp_continues_the_real_model_as_transformers_does(real, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(real)
    good(real, "-o", tmp_path / "f16.gguf")
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
        good(real, "--type", kind, "-o", tmp_path / f"{kind}.gguf")
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


# Safetensors


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
        folder, "--to", "safetensors", "--dtype", "fp32", "--max-shard", "100kB", "-o", tmp_path / "wide"
    )
    files = sorted((tmp_path / "wide").glob("*.safetensors"))
    assert len(files) == totals["files"] > 2 and all(file.stat().st_size <= 100_000 for file in files)
    assert sum(file.stat().st_size for file in files) == totals["bytes"]
    assert {line["type"] for line in lines} == {"fp32"}
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    assert wide.dtype == torch.float32
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(wide.state_dict()[name], tensor.float()), name
    good(tmp_path / "wide", "--to", "safetensors", "--dtype", "bf16", "-j", "3", "-o", tmp_path / "back")
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
        good(folder, "--to", "safetensors", "--dtype", name, "-o", tmp_path / name)
        found = tensors_of(tmp_path / name)
        assert torch.equal(found["a"].view(torch.int16), source.to(dtype).view(torch.int16))
        assert torch.equal(found["n"], torch.arange(5)) and found["e"].shape == (0, 4)


def test_a_killed_resharding_leaves_no_folder_and_the_next_one_continues_it(byte_level, tmp_path):
    folder, out = shutil.copytree(byte_level, tmp_path / "model"), tmp_path / "out"
    model(folder, vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=8)
    command = [folder, "--to", "safetensors", "--dtype", "bf16", "--max-shard", "300kB", "-o"]
    with halted("export", *command, out) as running:
        running.kill()
        running.communicate(timeout=60)
    assert (tmp_path / "out.partial").exists() and not out.exists()
    *lines, totals = good(*command, out)
    assert 0 < totals["reused"] < len(lines)
    *others, fresh = good(*command, tmp_path / "other")
    assert fresh["reused"] == 0 and len(others) == len(lines)
    assert tiny.tree(out) == tiny.tree(tmp_path / "other")
    assert not (tmp_path / "out.partial").exists()


def test_a_folder_is_refused_as_in_the_other_tools(byte_level, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert "--force" in bad(byte_level, "--to", "safetensors", "-o", out)
    assert (out / "mine").read_text() == "mine"
    assert "not a size" in bad(
        byte_level, "--to", "safetensors", "--max-shard", "5 apples", "-o", tmp_path / "x", code=2
    )
    assert "more than --max-shard" in bad(byte_level, "--to", "safetensors", "--max-shard", "9kB", "-o", tmp_path / "x")
    assert not (tmp_path / "x").exists()


# What it costs


def peak(*arguments):
    """Peak memory of a run in bytes."""
    done, _, peak = tiny.measured([*VTOOLS, *map(str, arguments)])
    assert done.returncode == 0, done.stderr
    return peak


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
        used.append(peak(folder, "--type", kind, "-o", tmp_path / f"{layers}.gguf"))
    print(f"{kind}: {used[0] / 1e6:.0f} and {used[1] / 1e6:.0f} MB for 0.1 and 1 GB")
    assert used[1] < used[0] + 20e6 and used[1] < 250e6
