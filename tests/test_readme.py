"""The README is short, and what it shows is what happens."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import readme
from conftest import DATA
from running import ROOT, on_path

from vtools import cli


def test_it_is_short_and_its_lines_fit_a_window():
    assert len(readme.README.encode()) <= 12_000
    assert [line for line in readme.README.splitlines() if len(line) > 160] == []


def test_it_shows_every_tool_and_every_file_that_it_links_to_is_there():
    for name in cli.COMMANDS:
        assert f"vtools {name} " in readme.README, name
    for target in re.findall(r"\]\(([^)#]+)", readme.README):
        assert (ROOT / target).exists(), target
    headings = {re.sub(r"[^a-z -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in readme.README.splitlines() if line.startswith("#")}  # fmt: skip
    assert set(re.findall(r"\]\(#([^)]+)\)", readme.README)) <= headings


def test_it_uses_no_variable_that_the_quickstart_does_not_name():
    named = set(re.findall(r"\b([A-Z]+)=%q", (ROOT / "recipes/quickstart.sh").read_text())) | {"VTOOLS_MODEL", "BLOG"}
    for command in readme.commands():
        assert set(re.findall(r"\$\{?([A-Z_]+)", command.text)) <= named, command.text
    assert "`BLOG` is the folder" in readme.README


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def environment(smollm2, sharegpt, tmp_path_factory):
    """What the quickstart tells its reader to export."""
    named = {
        "BASE": smollm2,
        "SHAREGPT": str(sharegpt),
        "DATA": str(ROOT / "recipes/data"),
        "BLOG": str(DATA / "vicuna-blog"),
    }
    return {**os.environ, **named, "PATH": on_path(tmp_path_factory.mktemp("tools"))}


@pytest.mark.slow
def test_what_it_shows_of_the_data_tools_and_the_report_is_what_they_print(folder, environment):
    compared = [command for command in readme.commands() if command.shown and not command.after_quickstart]
    assert [re.search(r"vtools (\S+)", command.text)[1] for command in compared] == ["fetch", "fetch", "clean", "split", "stats", "report"]  # fmt: skip
    for command in readme.commands():
        if command.kind == "sh" or command.after_quickstart:
            continue
        if "$BLOG" in command.text and not Path(environment["BLOG"], "question.jsonl").exists():
            pytest.skip("the Vicuna blog's reviews are not here (set VTOOLS_TEST_DATA)")
        readme.run(command, folder, environment)


def test_the_table_of_contents_of_the_results_names_every_entry():
    text = (ROOT / "tests/bench/RESULTS.md").read_text()
    assert re.findall(r"^- \[(.*)\]\(#", text, re.MULTILINE) == re.findall(r"^## (.*)$", text, re.MULTILINE)
