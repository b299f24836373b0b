"""export: llama.cpp cuts texts and chats into the tokens of the model's own tokenizer."""

import json
import shutil
import unicodedata

import llama_cpp
import pytest
from exporting import CHATS, TEXTS, change, metadata, model
from llama_cpp import needs_llama_cpp
from running import ROOT, bad, good, run

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from vtools.models import pretokenizer  # noqa: E402
from vtools.models.published_templates import SOURCES  # noqa: E402
from vtools.models.reference import model_folder  # noqa: E402
from vtools.models.tokenizer import load_tokenizer  # noqa: E402

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
    assert f"prepares text by {named};" in bad("export", folder, "-o", tmp_path / "out.gguf")


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
    good("export", folder, "-o", tmp_path / "out.gguf")
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
    done = run("export", folder, "-o", tmp_path / "chat.gguf")
    assert done.returncode == 0 and "plain texts get different ids" in done.errors
    assert llama_cpp.ask(tmp_path / "chat.gguf", chats=chats)["chats"] == [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats
    ]
    change(folder, "tokenizer_config.json", chat_template=None)
    done = run("export", folder, "-o", tmp_path / "base.gguf")
    assert done.returncode == 0 and "texts after control tokens get different ids" in done.errors
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
            done = run("export", folder, "-o", tmp_path / "out.gguf", "--force")
            assert done.returncode == 0, done.errors
            assert ("texts with right may get different ids" in done.errors) == told == ("rstrip" in done.errors)
    change(folder, "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [PREPEND, SPACES]})
    setup = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**setup, "pre_tokenizer": None}))
    assert "texts with right, plain may" in run("export", folder, "-o", tmp_path / "out.gguf", "--force").errors


@needs_llama_cpp
@pytest.mark.parametrize("scores", ["tokenizer.model", "merges"])
def test_llama_cpp_reads_texts_and_chats_as_a_sentencepiece_tokenizer_does(sentencepiece_model, tmp_path, scores):
    folder = shutil.copytree(sentencepiece_model, tmp_path / "model")
    (folder / {"tokenizer.model": "tokenizer.json", "merges": "tokenizer.model"}[scores]).unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    good("export", folder, "-o", tmp_path / "out.gguf")
    found = llama_cpp.ask(tmp_path / "out.gguf", texts=TEXTS, chats=CHATS)
    assert found["texts"] == tokenizer(list(TEXTS)).input_ids
    assert found["chats"] == [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in CHATS
    ]
    keys = metadata(tmp_path / "out.gguf")
    assert keys["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6] and keys["tokenizer.ggml.token_type"][1000] == 3


@needs_llama_cpp
def test_the_llama_vocabulary_gets_vicunas_template_and_reads_as_sentencepiece_does(llama, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = shutil.copytree(llama, tmp_path / "model")
    model(folder, vocab_size=32001, hidden_size=64, num_hidden_layers=1)
    good("export", folder, "-o", tmp_path / "out.gguf")
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
    good("export", folder, "-o", tmp_path / "out.gguf")
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
    good("export", folder, "-o", tmp_path / "known.gguf")
    raw = (tmp_path / "known.gguf").read_bytes()
    assert raw.count(b"gpt-2") == 1
    (tmp_path / "unknown.gguf").write_bytes(raw.replace(b"gpt-2", b"gpt-9"))
    for name in ("known", "unknown"):
        model_folder(str(tmp_path / f"{name}.gguf"))
        assert ("llama.cpp's 'gpt-9': token ids may differ" in capfd.readouterr().err) == (name == "unknown")
