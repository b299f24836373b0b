"""fetch: the file of each source gives its conversation, turn by turn; no file that is damaged ends in an error."""

from __future__ import annotations

import json
import random

import pytest
import source_files
from chats import jsonl
from running import run
from source_files import TALK, fetched, files, said

from vtools.fetch import sources

NAMES = [
    "chatgpt", "chatgpt share page", "chatgpt share page of React Router", "claude", "claude, shared", "sharegpt page",
    "sharegpt API", "open assistant", "open assistant, flat", "wildchat", "lmsys", "ultrachat", "ultrachat 200k",
    "openhermes", "openai fine-tuning", "openai preferences", "glaive", "llm", "open webui", "open webui's database",
    "lm studio",
]  # fmt: skip
TURNS = [(("user", "assistant")[place % 2], text) for place, text in enumerate(TALK)]


def test_every_file_is_tested(tmp_path):
    assert list(files(tmp_path)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_a_source_gives_its_turns_roles_and_texts_as_written(tmp_path, name):
    record = max(fetched(tmp_path, files(tmp_path)[name]), key=lambda record: len(record["messages"]))
    spoken = [said(message) for message in record["messages"] if message["role"] != "system"]
    assert [(role, text.removeprefix("Of plants:\n")) for role, text in spoken] == TURNS
    assert record["source"]["uri"].startswith(str(tmp_path / "in"))


def test_the_table_of_sources_has_a_line_for_each(tmp_path, vtools):
    done = vtools("fetch", "--list-sources")
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == [source.NAME for source in (*sources.OBJECTS, sources.records)]
    assert all(len(line) < 120 for line in lines)
    assert run("fetch", "--list-sources", stdin=jsonl({"prompt": "Q", "completion": "A"})).stdout == done.stdout


CHANGES = [None, [], {}, "", "x", 0, -1, 1e300, True, [[]], [{}], {"a": {}}, "\ud800", [None], "q1", ["text"]]


def changed(value, chance):
    """The value with one part, at any depth, replaced or gone."""
    places = []

    def note(inner, path):
        children = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        for key, child in children:
            places.append((inner, key))
            note(child, path)

    value = json.loads(json.dumps(value))
    note(value, ())
    for inner, key in chance.sample(places, min(len(places), chance.choice([1, 1, 2, 4]))):
        if chance.random() < 0.3 and isinstance(inner, dict):
            inner.pop(key, None)
        elif isinstance(inner, dict) or key < len(inner):
            inner[key] = chance.choice(CHANGES)
    return value


def mutated(data, chance):
    """The file with bytes cut, changed or repeated, or, if it is JSON, with parts of its values changed."""
    try:
        values = [json.loads(line) for line in data.splitlines()]
    except ValueError:
        values = []
    if values and chance.random() < 0.7:
        return jsonl(*(changed(value, chance) for value in values))
    start, end = sorted(chance.choices(range(len(data)), k=2))
    return chance.choice([data[:start], data[:start] + data[end:], data[:end] + data[start:], data[:start] + bytes(chance.choices(range(256), k=3)) + data[start + 3 :]])  # fmt: skip


def check_mutated(folder, name, rounds):
    """All is counted, and only Failure ends a run, with nothing written."""
    chance, data = random.Random(name), files(folder)[name]
    paths = {"rejects": str(folder / "rejects"), "stats": str(folder / "stats")}
    for _ in range(rounds):
        (folder / "out").unlink(missing_ok=True)
        given, branches = mutated(data, chance), chance.choice(["current", "all"])
        try:
            records = fetched(folder, given, branches=branches, **paths)
        except source_files.Failure:
            assert not (folder / "out").exists()
            continue
        stats = json.loads((folder / "stats").read_bytes())
        assert stats["in"] == stats["out"] + stats["rejected"]
        assert stats["rejected"] == len((folder / "rejects").read_bytes().splitlines())
        assert len(records) >= stats["out"]
        assert fetched(folder, jsonl(*records)) == records if records else True


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_as_far_as_it_goes_and_all_of_it_counted(tmp_path, name):
    check_mutated(tmp_path, name, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_damaged_files_end_in_no_unexpected_error(tmp_path, name):
    check_mutated(tmp_path, name, 10_000 // len(NAMES) + 1)
