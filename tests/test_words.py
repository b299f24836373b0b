"""The words of the tree: spelling, phrases with a plainer form, help that begins with a verb, worked examples."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import typer.main
from conftest import ROOT

from vtools import cli
from vtools.clean.html import convert, layout, page
from vtools.models.text_encoders import INSIDE, encoders
from vtools.models.tokenizer import load_tokenizer
from vtools.split import token_counts

SPELLED = ["vtools", "tests", "recipes", "README.md", "AGENTS.md", "CHANGELOG.md"]
READ = SPELLED
# What not to say, as a regular expression between word boundaries, and what to say instead.
INSTEAD = {
    r"rooms?": "space",
    r"(?:lines?|one|once|bytes|tokens|dollars|steps|operations|words) an? "
    r"(?:second|hour|process|rank|GPU|token|tensor|parameter|word|step|line|option|event|record|judgment)": "per",
    r"but for": "except",
    r"(?:tell|tells|told|telling) (?:\w+ )?apart": "detect, distinguish",
    r"left over": "remaining",
    r"made again": "recomputed, rebuilt",
    r"(?:go|goes|going) on (?:from|where)": "resume",
    r"taken up again": "resumed",
    r"cut over": "sharded over",
    r"in the place of": "in place of, instead of",
    r"\(a bug": "unexpected error",
    r"stor(?:y|ies)|bur(?:y|ied)": "the plain word",
    r"in order to": "to",
    r"utili[sz]\w+|leverag\w+": "use",
    r"(?<!st\.)just|simply|basically|obviously": "nothing",
}
VERBS = set(
    """Accept Add Answer Ask Begin Check Compare Count Draw Drop Fine-tune Give Hide Hold Join Keep Limit Listen
    Match Name Plan Print Read Replace Report Reproduce Run Sample Save Scale Set Show Start Stop Switch
    Train Use Wait Warm Write""".split()
)
CHOICES = {"Which", "Whether", "Where", "How"}  # of an option that selects among values


def texts() -> list[Path]:
    places = [ROOT / name for name in READ]
    found = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [path for path in found if path.suffix in (".py", ".sh", ".md") and path != Path(__file__).resolve()]


def odd_phrases(name: str, text: str) -> list[str]:
    """FILE:LINE: what is written -> what to say instead."""
    return [
        f"{name}:{number}: {match[0]} -> {instead}"
        for number, line in enumerate(text.splitlines(), 1)
        for phrase, instead in INSTEAD.items()
        for match in re.finditer(rf"(?<!\w)(?:{phrase})\b", line, re.IGNORECASE)
    ]


def odd_start(text: str) -> bool:
    return text.split(" ")[0] not in VERBS | CHOICES


def test_every_word_is_spelled_right():
    tool = Path(sys.executable).with_name("codespell")
    done = subprocess.run([tool, *SPELLED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_said_that_has_a_plainer_form():
    found = [odd for path in texts() for odd in odd_phrases(str(path.relative_to(ROOT)), path.read_text())]
    assert not found, "\n" + "\n".join(found)


def test_the_help_of_every_option_begins_with_a_verb_or_names_a_choice():
    commands = typer.main.get_command(cli.build()).commands
    options = [(name, option) for name, command in commands.items() for option in command.params if option.param_type_name == "option"]  # fmt: skip
    assert len(options) > 100
    found = [f"{name} {option.opts[0]}: {option.help}" for name, option in options if odd_start(option.help or "")]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "odd"),
    [
        ("one line a tensor", ["x:1: line a tensor -> per"]),
        ("Leave ROOM for it, but for the last", ["x:1: ROOM -> space", "x:1: but for -> except"]),
        ("a bedroom; butter for all; adjust it (a bug)", ["x:1: (a bug -> unexpected error"]),
        ("one line per tensor", []),
    ],
)
def test_an_odd_phrase_is_found_with_its_line_and_what_to_say(line, odd):
    assert odd_phrases("x", line) == odd


def test_help_that_begins_otherwise_is_found():
    assert odd_start("A new folder.") and odd_start("write it.") and odd_start("")
    assert not odd_start("Write it.") and not odd_start("Which one to keep.")


def test_the_worked_example_of_the_markdown_layout_is_true():
    message = re.search(r"    message +(.+)", layout.__doc__)[1]
    document, kept = re.search(r"    document +(.+?) +kept (.+)", layout.__doc__).groups()
    markdown = textwrap.dedent(" " * 14 + layout.__doc__.partition("    Markdown  ")[2]).strip()
    made = page.document(message)
    assert made.html.replace("(\x020\x03)", "{0}").replace("\x04", "«") == document
    assert made.kept == json.loads(kept)
    assert convert.to_markdown(message, "reference") == markdown


def test_the_worked_example_of_token_counting_is_true(smollm2, llama):
    text, total = re.search(r'"(The cat.+?)", (\d+) tokens', token_counts.__doc__).groups()
    for name, model in (("SmolLM2", smollm2), ("LLaMA", llama)):
        units, counts = re.search(rf"  {name} +(The\|.+?) {{3,}}(.+)", token_counts.__doc__).groups()
        tokenizer = load_tokenizer(model)
        pattern, _ = token_counts.unit(json.loads(tokenizer.backend.to_str()))
        encoder = encoders(tokenizer)[INSIDE]
        lengths = [len(encoder.encode(unit, add_special_tokens=False).ids) for unit in units.split("|")]
        assert pattern.findall(text) == units.split("|")
        assert lengths == [int(count) for count in counts.split(" + ")]
        assert sum(lengths) == len(encoder.encode(text, add_special_tokens=False).ids) == int(total)
