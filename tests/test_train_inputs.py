"""train: its input as the other tools take it: several files, folders, globs, pipes."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from running import bad, good, run
from tiny import conversations, make, write

from vtools.models.template import Template, load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.train import token_cache


@pytest.fixture(scope="module")
def template(eot: str) -> Template:
    return load_template(None, load_tokenizer(eot))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("inputs") / "base")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve conversations in three files, one of them below, beside a file of something else."""
    rows = conversations(12)
    (tmp_path / "data" / "more").mkdir(parents=True)
    write(tmp_path / "data" / "a.jsonl", rows[:3])
    write(tmp_path / "data" / "b.jsonl", rows[3:7])
    write(tmp_path / "data" / "more" / "c.jsonl", rows[7:])
    (tmp_path / "data" / "notes.txt").write_text("notes")
    write(tmp_path / "whole.jsonl", rows)
    return tmp_path


def test_several_files_are_the_data_of_one(template: Template, folder: Path, cache: Path) -> None:
    names = [str(folder / "data" / name) for name in ("a.jsonl", "b.jsonl", "more/c.jsonl")]
    parts = token_cache.read(names, template, 512, "truncate", quiet=True)
    whole = token_cache.read([str(folder / "whole.jsonl")], template, 512, "truncate", quiet=True)
    assert len(parts) == 12 and parts.digest == whole.digest
    turned = token_cache.read(names[::-1], template, 512, "truncate", quiet=True)
    assert turned.folder != parts.folder and turned.digest != parts.digest and turned.tokens == parts.tokens


def test_a_rejected_record_of_several_files_is_named_by_its_file(template: Template, folder: Path, cache: Path) -> None:
    (folder / 'odd "name".jsonl').write_text('{"some": "thing"}\n')
    (folder / "broken.jsonl").write_text("{\n")
    names = [str(folder / name) for name in ("whole.jsonl", 'odd "name".jsonl', "broken.jsonl")]
    saved = folder / "rejects.jsonl"
    for _ in range(2):  # tokenised, then from the cache
        token_cache.read(names, template, 512, "truncate", rejects=str(saved), quiet=True)
        rows = [json.loads(line) for line in saved.read_text().splitlines()]
        assert [(row["source"], row["line"]) for row in rows] == [(names[1], 1), (names[2], 1)]
    with pytest.raises(Exception, match=r"broken\.jsonl:1: "):
        token_cache.read(names, template, 512, "truncate", quiet=True)


def test_a_thousand_files_and_more_can_be_one_input(template: Template, tmp_path: Path, cache: Path) -> None:
    rows = conversations(1500)
    names = [str(write(tmp_path / f"{number}.jsonl", [row])) for number, row in enumerate(rows)]
    assert len(token_cache.read(names, template, 512, "truncate", quiet=True)) == 1500


@pytest.mark.slow
def test_operands_folders_globs_and_data_options_mean_the_same(base: Path, folder: Path) -> None:
    ways: list[list[object]] = [
        ["whole.jsonl"],
        ["data"],
        ["data/*.jsonl", "--data", "data/more"],
        ["--data", "data/a.jsonl", "--data", "data/b.jsonl", "--data", "data/more/c.jsonl"],
    ]
    for number, way in enumerate(ways):
        options = ["--model", base, "--batch", 4, "--max-steps", 2, "--dtype", "fp32"]
        done = run("train", *way, *options, "--out", "out", cwd=folder)
        assert done.returncode == 0, done.errors
        assert ("nothing to do" in done.errors) == (number > 0)  # so it is the same run
        assert ("data: 3 files; skipped 1: notes.txt" in done.errors) == (way == ["data"])


def test_held_out_data_and_earlier_results_in_the_folder_of_the_data_are_not_trained_on(
    base: Path, folder: Path
) -> None:
    options = ["--model", base, "--eval", "data/more/c.jsonl", "--batch", 4, "--max-steps", 1, "--warmup", 0]
    for _ in range(2):
        rows = good("train", "data", *options, "--out", "data/tuned", "--resume", "never", cwd=folder)
        assert (rows[0]["conversations"], rows[0]["rejected"]) == (7, 0)


def test_standard_input_can_stand_among_files_but_only_once(base: Path, folder: Path) -> None:
    text = (folder / "data" / "b.jsonl").read_text()
    options = ["--model", base, "-n", "-q", "--batch", 4]
    (plan,) = good("train", "data/a.jsonl", "-", *options, stdin=text, cwd=folder)
    assert plan["conversations"] == 7
    for more in (["-"], ["--eval", "-"]):
        assert "stdin (-) can be read once" in bad("train", "-", *more, *options, code=2, cwd=folder)


def test_a_named_pipe_is_read_once_and_all_of_it(template: Template, folder: Path, cache: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes((folder / "whole.jsonl").read_bytes()))
    writer.start()
    corpus = token_cache.read([str(pipe), str(folder / "data" / "a.jsonl")], template, 512, "truncate", quiet=True)
    writer.join()
    assert len(corpus) == 15
