"""The data of `vtools train`: conversations are tokenised once, as the template renders them, and mapped from then on."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chats import chat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import ROOT
from tiny import conversations, write
from token_caches import contents, entries, mixed

from vtools.files.lock import lock
from vtools.models.template import Template, load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.process import Failure
from vtools.records import conversation
from vtools.records.jsonl import Reject
from vtools.train import data, token_cache
from vtools.train.data import Corpus


@pytest.fixture(scope="module")
def template(eot: str) -> Template:
    return load_template(None, load_tokenizer(eot))


@pytest.fixture
def no_rendering(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After the call, to tokenise anything is an error."""

    def refuse(self: Template, messages: object, context: int = 0) -> None:
        raise AssertionError("a conversation is rendered")

    return lambda: monkeypatch.setattr(Template, "render", refuse)


# What is kept is what the template gives


text = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(["<|eot|>", "a<|head|>b", "  ", "né\n\n"])
answer = text.filter(str.strip)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chats=st.lists(st.lists(st.tuples(text, answer), min_size=1, max_size=3), min_size=1, max_size=5),
    limit=st.integers(1, 120),
)
def test_a_conversation_is_what_the_template_renders_cut_at_the_limit(
    chats: list[list[tuple[str, str]]], limit: int, template: Template, tmp_path: Path, cache: Path
) -> None:
    records = [
        {
            "messages": [
                {"role": role, "content": said}
                for turn in chat
                for role, said in zip(("user", "assistant"), turn, strict=True)
            ]
        }
        for chat in chats
    ]
    wanted = []
    for record in records:
        ids, mask = template.render(record["messages"])
        trained = [place for place, one in enumerate(mask[:limit]) if one and place]
        if trained:  # what follows the last trained token is not kept: it changes no loss
            wanted.append((ids[: trained[-1] + 1], [int(one) for one in mask[: trained[-1] + 1]], any(mask[limit:])))
    path = write(tmp_path / "chats.jsonl", records)
    if not wanted:
        with pytest.raises(Failure, match="no conversation has a token to train"):
            token_cache.read([str(path)], template, limit, "truncate", quiet=True)
        return
    corpus = token_cache.read([str(path)], template, limit, "truncate", quiet=True)
    found = [corpus.conversation(index) for index in range(len(corpus))]
    assert [(ids.tolist(), list(mask)) for ids, mask in found] == [(ids, mask) for ids, mask, _ in wanted]
    assert corpus.truncated == sum(cut for _, _, cut in wanted)
    assert corpus.reasons.get("overlong", 0) == corpus.rejected == len(records) - len(wanted)
    assert list(corpus.lengths) == [len(ids) for ids, _, _ in wanted]
    assert list(corpus.trained_counts) == [sum(mask) for _, mask, _ in wanted]
    assert corpus.tokens == sum(corpus.lengths) == corpus.starts[-1]
    assert corpus.trained_tokens == sum(corpus.trained_counts)
    assert corpus.largest == max(max(ids) for ids, _, _ in wanted)


def test_overlong_conversations_are_cut_dropped_or_refused_as_asked(
    template: Template, tmp_path: Path, cache: Path
) -> None:
    records = conversations(6)
    records[2]["messages"] = [
        {"role": "user", "content": "one bird"},
        {"role": "assistant", "content": "some cat " * 120},
    ]
    records[4]["messages"] = [{"role": "user", "content": "red hills " * 120}, {"role": "assistant", "content": "a"}]
    path = str(write(tmp_path / "long.jsonl", records))
    limit = 200
    lengths = [len(template.render(record["messages"]).ids) for record in records]
    over = sum(length > limit for length in lengths)
    assert 2 <= over < 6
    cut = token_cache.read([path], template, limit, "truncate", quiet=True)
    assert cut.reasons == {"overlong": 1} and cut.truncated == over - 1 and max(cut.lengths) <= limit
    kept = token_cache.read([path], template, limit, "drop", quiet=True)
    assert kept.reasons == {"overlong": over} and len(kept) == 6 - over and not kept.truncated
    with pytest.raises(Failure, match="--max-tokens is 200"):
        token_cache.read([path], template, limit, "error", quiet=True)


# Once


def test_the_second_run_on_the_same_data_tokenises_nothing(
    template: Template, tmp_path: Path, cache: Path, no_rendering: Callable[[], None], capsys: Any
) -> None:
    path = write(tmp_path / "chats.jsonl", conversations(20))
    first = token_cache.read([str(path)], template, 512, "truncate")
    said = capsys.readouterr().err
    no_rendering()
    moved = path.rename(tmp_path / "moved.jsonl")
    again = token_cache.read([str(moved)], template, 512, "truncate")
    assert again.folder == first.folder and again.digest == first.digest
    assert capsys.readouterr().err == said == "vtools train: 20 in, 20 out, 0 rejected\n"
    with pytest.raises(AssertionError, match="is rendered"):  # the proof would notice a rendering
        token_cache.read([str(moved)], template, 511, "truncate")


@pytest.mark.parametrize("what", ["a byte", "max_tokens", "overlong", "template", "name", "tokenizer", "end"])
def test_whatever_decides_about_tokens_makes_another_entry(
    what: str, eot: str, template: Template, tmp_path: Path, cache: Path
) -> None:
    path = write(tmp_path / "chats.jsonl", conversations(5))
    before = token_cache.read([str(path)], template, 512, "truncate", quiet=True).folder
    limit, overlong, chosen = 512, "truncate", template
    if what == "a byte":
        path.write_bytes(path.read_bytes() + b"\n")
    elif what == "max_tokens":
        limit = 513
    elif what == "overlong":
        overlong = "drop"
    elif what == "name":
        chosen = Template("other", template.source, template.stop_strings, template.tokenizer)
    elif what == "template":
        chosen = Template(template.name, template.source + " ", template.stop_strings, template.tokenizer)
    else:
        folder = tmp_path / "model"
        shutil.copytree(eot, folder)
        if what == "tokenizer":
            about = json.loads((folder / "tokenizer.json").read_text())
            about["model"]["merges"].pop()
            (folder / "tokenizer.json").write_text(json.dumps(about))
        else:
            (folder / "generation_config.json").write_text('{"eos_token_id": [5]}')
        chosen = load_template(None, load_tokenizer(str(folder)))
    after = token_cache.read([str(path)], chosen, limit, overlong, quiet=True).folder  # type: ignore[arg-type]
    assert entries(cache) == sorted([before, after]) and before != after


def test_a_change_of_any_module_that_rendering_imports_makes_another_entry(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_cli import imported

    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "vtools").rglob("*.py")
    }
    reached, waiting = set(), {"vtools.train.data", "vtools.train.token_cache"}
    while waiting:
        reached |= waiting
        waiting = {name for one in waiting for name in imported(modules[one], modules)} - reached
    # What lies below the records knows nothing of tokens: files, options, exits.
    deciding = {modules[name] for name in reached if name.split(".")[1:2] in (["records"], ["models"], ["train"])}
    assert {path.stem for path in deciding} >= {"conversation", "template", "text_encoders", "pretokenizer", "data"}
    read, before = Path.read_bytes, token_cache._key([], template, 512, "truncate")
    for changed in deciding:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda path, one=changed: read(path) + b"#" * (path == one))
            assert token_cache._key([], template, 512, "truncate") != before, changed
    assert token_cache._key([], template, 512, "truncate") == before


def test_the_digest_depends_on_order_text_and_mask(template: Template, tmp_path: Path, cache: Path) -> None:
    source = "{% for message in messages %}{{ message.content }}<|eot|>{% endfor %}"
    bare = Template("bare", source, (), template.tokenizer)  # it shows no roles: they decide about the mask alone

    def corpus(rows: list[dict[str, Any]]) -> Corpus:
        return token_cache.read([str(write(tmp_path / "x.jsonl", rows))], bare, 512, "truncate", quiet=True)

    def spoken(*roles: str) -> list[dict[str, Any]]:
        return [{"messages": [{"role": role, "content": "the cat"} for role in roles]}]

    records, other = conversations(3), conversations(3)
    other[0]["messages"][-1]["content"] += " same"
    answered, asked, begun = (
        corpus(spoken(first, second, "assistant"))
        for first, second in (("user", "assistant"), ("user", "user"), ("assistant", "user"))
    )
    assert list(answered.ids) == list(asked.ids) == list(begun.ids)
    assert begun.trained[0] == 0 and begun.trained[1] == 1  # nothing comes before a first token that could predict it
    rest = [corpus(rows) for rows in (records, records[::-1], records[:2], other)]
    assert len({one.digest for one in (answered, asked, begun, *rest)}) == 7
    assert all(one.largest == max(one.ids) for one in rest)


# Rejects


def test_rejects_and_counts_are_the_same_when_nothing_is_read_again(
    template: Template, tmp_path: Path, cache: Path, no_rendering: Callable[[], None], capsys: Any
) -> None:
    path = mixed(tmp_path)
    saved = tmp_path / "rejects.jsonl"
    corpus = token_cache.read([str(path)], template, 60, "drop", rejects=str(saved))
    first, said = saved.read_bytes(), capsys.readouterr().err
    rows = [json.loads(line) for line in first.splitlines()]
    reasons = [row["reason"] for row in rows]
    assert {"bad_json", "not_object", "template_error", "bad_schema", "torn_input", "overlong"} == set(reasons)
    assert corpus.received == len(corpus) + corpus.rejected == 35 and corpus.rejected == len(rows)
    assert {row["source"] for row in rows} == {str(path)}
    assert next(row for row in rows if row["reason"] == "bad_json")["line"] == 4
    assert f"35 in, {len(corpus)} out, {len(rows)} rejected" in said
    no_rendering()
    saved.unlink()
    again = token_cache.read([str(path)], template, 60, "drop", rejects=str(saved))
    assert saved.read_bytes() == first and capsys.readouterr().err == said == f"vtools train: {again.line()}\n"
    other = shutil.copy(path, tmp_path / 'other "name".jsonl')
    token_cache.read([str(other)], template, 60, "drop", rejects=str(saved), quiet=True)
    assert [json.loads(line) for line in saved.read_bytes().splitlines()] == [
        {**row, "source": str(other)} for row in rows
    ]
    assert b"123456789012345678901234567890" in saved.read_bytes()
    with pytest.raises(Failure, match="is an input file"):
        token_cache.read([str(path)], template, 60, "drop", rejects=str(path))


def test_broken_input_ends_a_run_without_rejects_even_if_another_run_went_on(
    template: Template, tmp_path: Path, cache: Path
) -> None:
    path = mixed(tmp_path)
    with pytest.raises(Failure, match=r"mixed\.jsonl:4: .*--rejects FILE") as first:
        token_cache.read([str(path)], template, 512, "truncate", quiet=True)
    assert entries(cache) == []
    token_cache.read([str(path)], template, 512, "truncate", rejects=os.devnull, quiet=True)
    with pytest.raises(Failure) as second:
        token_cache.read([str(path)], template, 512, "truncate", quiet=True)
    assert str(first.value) == str(second.value)


@pytest.mark.parametrize("again", [False, True])
def test_input_that_teaches_nothing_is_refused_with_its_rejects_saved(
    again: bool, template: Template, tmp_path: Path, cache: Path
) -> None:
    path, saved = tmp_path / "x.jsonl", tmp_path / "rejects.jsonl"
    for _ in range(1 + again):
        path.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
        with pytest.raises(
            Failure, match=r"no conversation has a token to train on \(first: .*x\.jsonl:1: template_err"
        ):
            token_cache.read([str(path)], template, 512, "truncate", rejects=str(saved), quiet=True)
        assert json.loads(saved.read_bytes())["reason"] == "template_error"
        path.write_text("\n")
        with pytest.raises(Failure, match="there are no conversations"):
            token_cache.read([str(path)], template, 512, "truncate", quiet=True)


@pytest.mark.parametrize("name", [*data.FORMATS, token_cache.REJECTS, data.ABOUT])
@pytest.mark.parametrize("damage", ["truncated", "grown", "missing"])
def test_a_damaged_entry_is_made_again(name: str, damage: str, template: Template, tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "chats.jsonl", [*conversations(5), {"some": "thing"}])
    corpus = token_cache.read([str(path)], template, 512, "truncate", quiet=True)
    folder, whole = corpus.folder, contents(corpus.folder)
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "truncated":
        os.truncate(folder / name, len(whole[name]) - 1)
    else:
        (folder / name).write_bytes(whole[name] + b"1")
    with pytest.raises(Failure, match="incomplete"):
        Corpus(folder)
    again = token_cache.read([str(path)], template, 512, "truncate", quiet=True)
    assert again.folder == folder and contents(folder) == whole


# The cache in the long run


def test_entries_that_no_run_has_used_for_a_month_go_unless_they_are_open(
    template: Template, tmp_path: Path, cache: Path
) -> None:
    def made(seed: int) -> Corpus:
        path = write(tmp_path / f"{seed}.jsonl", conversations(3, seed))
        return token_cache.read([str(path)], template, 512, "truncate", quiet=True)

    def age(folder: Path, days: float) -> None:
        then = time.time() - days * 24 * 3600
        os.utime(folder / data.ABOUT, (then, then))

    unused, recent, used = (made(seed).folder for seed in (1, 2, 3))
    opened = made(4)
    for folder, days in ((unused, 31), (recent, 29), (used, 31), (opened.folder, 31)):
        age(folder, days)
    made(3)  # touches it
    left, building = cache / f".{'ab' * 16}.part", cache / f".{'cd' * 16}.part"
    for folder in (left, building):
        folder.mkdir()
        (folder / "ids").write_bytes(b"1234")
    with lock(cache / ".locks" / "cd"):
        newest = made(5).folder
    assert entries(cache) == sorted([recent, used, opened.folder, newest])
    assert building.exists() and not left.exists()
    assert opened.conversation(2)[0].tolist()
    folder = opened.folder
    del opened
    made(6)
    assert not folder.exists() and not building.exists()


def test_a_corpus_travels_as_its_path_and_opens_in_hardly_any_memory(
    template: Template, tmp_path: Path, cache: Path
) -> None:
    path = write(tmp_path / "chats.jsonl", conversations(1))
    small = token_cache.read([str(path)], template, 512, "truncate", quiet=True)
    number, folder = 1_000_000, tmp_path / "million"
    folder.mkdir()
    length = small.lengths[0]
    (folder / "ids").touch()
    os.truncate(folder / "ids", 4 * length * number)  # a hole: this test is about the rest
    (folder / "trained").touch()
    os.truncate(folder / "trained", length * number)
    (folder / "lengths").write_bytes(bytes(small.lengths) * number)
    (folder / "trained_counts").write_bytes(bytes(small.trained_counts) * number)
    (folder / "starts").write_bytes(array("q", range(0, length * number + 1, length)).tobytes())
    shutil.copy(small.folder / token_cache.REJECTS, folder)
    about = json.loads((small.folder / data.ABOUT).read_text())
    about["bytes"] = {name: (folder / name).stat().st_size for name in about["bytes"]}
    (folder / data.ABOUT).write_text(json.dumps(about))
    tracemalloc.start()
    corpus = Corpus(folder)
    ids, mask = corpus.conversation(number - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(corpus) == number and len(ids) == len(mask) == length
    assert peak < 1 << 18
    packed = pickle.dumps(corpus)
    assert len(packed) < 1000
    assert pickle.loads(packed).conversation(number - 1) == (ids, mask)


def test_a_conversation_shown_has_its_trained_tokens_marked(template: Template, tmp_path: Path, cache: Path) -> None:
    records = conversations(9)
    corpus = token_cache.read([str(write(tmp_path / "x.jsonl", records))], template, 512, "truncate", quiet=True)
    shown = data.marked(corpus, 0, template, "⟦", "⟧")
    for message in records[0]["messages"]:
        if message["role"] == "assistant":
            assert f"<|head|>assistant<|/head|>\n\n⟦{message['content']}<|eot|>⟧" in shown
    assert shown.replace("⟦", "").replace("⟧", "") == template._cutter.program.render(records[0]["messages"])


def test_one_object_becomes_ids_and_mask_or_a_reject(template: Template) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a cat"}]
    row = data.tokenise({"messages": messages, "source": {"kind": "own"}}, template, 512, "truncate")
    ids = array("i", row["ids"]).tolist()
    assert len(ids) == len(row["trained"]) and set(row["trained"]) == {0, 1}
    assert (row["kind"], row["license"]) == ("own", "unknown") and row["largest"] == max(ids)
    with pytest.raises(Reject):
        data.tokenise({"messages": messages[:1]}, template, 512, "truncate")


def test_turns_that_a_segment_repeats_are_context_and_not_trained_twice(template: Template) -> None:
    messages = [{"role": role, "content": text} for role, text in (
        ("system", "be kind"), ("user", "hi"), ("assistant", "a cat"), ("user", "and"), ("assistant", "a dog"))]  # fmt: skip
    whole = data.tokenise({"messages": messages}, template, 512, "truncate")
    cut = data.tokenise({"messages": messages, "segment": {"overlap": 2}}, template, 512, "truncate")
    assert cut["ids"] == whole["ids"]
    once = data.tokenise({"messages": [*messages[:1], *messages[3:]]}, template, 512, "truncate")
    assert 0 < sum(cut["trained"]) == sum(once["trained"]) < sum(whole["trained"])
    last = bytes(whole["trained"]).rindex(b"\0") + 1
    assert cut["trained"][last:] == whole["trained"][last:] and not any(cut["trained"][:last])


@pytest.mark.parametrize("format", ["messages", "sharegpt"])
def test_an_answer_that_its_data_set_excludes_is_context_in_either_format(template: Template, format: str) -> None:
    excluded = {"role": "assistant", "content": "Not this one.", "weight": 0}
    record = {"id": "a", "messages": [*chat("Hi"), excluded, *chat("Why?", "This one.")]}
    written = conversation.formatted(conversation.read(record), format)
    found = data.tokenise(written, template, 1000, "error")
    ids = array("i", found["ids"])
    trained = [number for number, on in zip(ids, found["trained"], strict=True) if on]
    assert "This one." in template.tokenizer.decode(trained)
    assert "Not" not in template.tokenizer.decode(trained)
    assert "Not this one." in template.tokenizer.decode(list(ids))
    with pytest.raises(Reject, match="no answer to train on"):
        data.tokenise({"messages": [*chat("Hi"), excluded]}, template, 1000, "error")
