"""Model references: a GGUF file is an ordinary model, and what is no model is one clear line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import tiny

from vtools import options
from vtools.models.configs import TORCH_NAMES
from vtools.models.load import load_model
from vtools.models.reference import model_folder
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure
from vtools.weights.tensor import DTYPE_NAMES


def test_the_real_gguf_is_an_ordinary_model_that_continues_a_sentence(smollm2, tmp_path):
    import torch

    loaded = load_model(smollm2)
    tokenizer = load_tokenizer(smollm2)
    ids = tokenizer.backend.encode("The capital of France is", add_special_tokens=False).ids
    with torch.no_grad():
        best = loaded(torch.tensor([ids])).logits[0, -1].argmax().item()
    assert tokenizer.decode([best]) == " Paris"
    assert (tokenizer.eos, sorted(tokenizer.special_ids)[:3]) == ("<|im_end|>", [0, 1, 2])
    assert not hasattr(loaded.config, "quantization_config")

    loss = loaded(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    loss.backward()
    assert all(weight.grad is not None for weight in loaded.parameters())

    loaded.save_pretrained(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(again(torch.tensor([ids])).logits, loaded(torch.tensor([ids])).logits)


def test_a_gguf_file_is_converted_once(smollm2):
    first = model_folder(smollm2)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert model_folder(smollm2) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_folder_is_itself(tmp_path):
    folder = tiny.make(tmp_path / "tiny")
    assert model_folder(str(folder)) == folder
    assert load_tokenizer(str(folder)).eos == "<|im_end|>"


def test_a_training_runs_padding_and_length_stored_with_a_tokenizer_change_no_ids(tmp_path):
    folder = tiny.make(tmp_path / "tiny")
    plain = load_tokenizer(str(folder)).backend.encode(tiny.TEXT).ids
    path = folder / "tokenizer.json"
    setup = json.loads(path.read_text())
    setup["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    setup["padding"] = {
        "strategy": {"Fixed": 600}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
        "pad_token": "<|im_end|>",
    }  # fmt: skip
    path.write_text(json.dumps(setup))
    assert load_tokenizer(str(folder)).backend.encode(tiny.TEXT).ids == plain


def test_a_sentencepiece_tokenizer_alone_is_enough(llama):
    tokenizer = load_tokenizer(llama)
    assert (len(tokenizer), tokenizer.bos, tokenizer.eos, tokenizer.id_of("</s>")) == (32000, "<s>", "</s>", 2)
    assert tokenizer.decode(tokenizer.backend.encode("Hi there", add_special_tokens=False).ids) == "Hi there"


def broken(folder: Path, name: str, text: str) -> str:
    folder.mkdir()
    (folder / name).write_text(text)
    return str(folder)


def test_what_is_no_model_is_said_in_one_line(tmp_path):
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(b"GGUF but not really" * 10)
    cases = {
        "nowhere": "no such folder",
        str(tmp_path / "missing.gguf"): "no such file",
        str(gguf): "not a GGUF file",
        broken(tmp_path / "empty", "x", ""): "no tokenizer.json",
        broken(tmp_path / "bad", "tokenizer.json", "{}"): "not a tokenizer",
    }
    for reference, why in cases.items():
        with pytest.raises(Failure, match=why) as caught:
            load_tokenizer(reference)
        assert "\n" not in str(caught.value)
    with pytest.raises(Failure, match=r"no config\.json"):
        load_model(str(tmp_path / "empty"))


def test_a_hub_id_without_the_hub_says_what_went_wrong(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Failure, match="owner/name: no such folder, and not available on the hub"):
        model_folder("owner/name")


def test_the_older_places_of_a_chat_template_are_read(tmp_path, eot):
    source = Path(eot) / "tokenizer.json"
    several = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    for name, config, files in (
        ("string", {"chat_template": "C"}, {}),
        ("list", {"chat_template": several}, {}),
        ("file", {"chat_template": "C"}, {"chat_template.jinja": "J"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes(source.read_bytes())
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        for file, text in files.items():
            (folder / file).write_text(text)
    found = [load_tokenizer(str(tmp_path / name)).chat_template for name in ("string", "list", "file")]
    assert found == ["C", "D", "J"]


ODD = [
    ("generation_config.json", b'{"eos_token_id": "2"}', "eos_token_id is '2', not a number or a list; correct it"),
    ("generation_config.json", b'{"eos_token_id": [[2]]}', "eos_token_id is [[2]], not a number or a list"),
    ("generation_config.json", b'{"eos_token_id": 2.0}', "eos_token_id is 2.0, not a number or a list"),
    ("generation_config.json", b'{"stop_strings": [5]}', "stop_strings is [5], not a text or a list"),
    ("chat_template.jinja", b"caf\xe9", "not UTF-8 (unexpected end of data at byte 3); save it as UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "says"), ODD)
def test_an_odd_file_beside_a_tokenizer_is_named(name, content, says, tmp_path, eot):
    (tmp_path / "tokenizer.json").write_bytes((Path(eot) / "tokenizer.json").read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Failure, match=re.escape(f"{tmp_path / name}: {says}")):
        load_tokenizer(str(tmp_path))


def test_token_number_zero_may_end_an_answer(tmp_path, eot):
    (tmp_path / "tokenizer.json").write_bytes((Path(eot) / "tokenizer.json").read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert load_tokenizer(str(tmp_path)).end_ids == [0]


@pytest.mark.parametrize("stored", [5, ["C"], [{"name": "default"}], [{"name": "tool", "template": "T"}]])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.json"])
def test_a_chat_template_that_is_no_text_is_none(name, stored, tmp_path, eot):
    (tmp_path / "tokenizer.json").write_bytes((Path(eot) / "tokenizer.json").read_bytes())
    (tmp_path / name).write_text(json.dumps({"chat_template": stored}))
    assert load_tokenizer(str(tmp_path)).chat_template is None


def test_a_dtype_has_one_name_at_every_tool():
    assert {*get_args(options.Dtype), "fp64"} == DTYPE_NAMES.keys() == TORCH_NAMES.keys()
