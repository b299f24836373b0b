"""The program as a whole: start-up, help, completions, the rules of the house."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import ROOT, python

from vtools import cli, completions, machine, process

COMMANDS = list(cli.COMMANDS)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = set(PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"])
LIGHT = {"typer", "orjson", "zstandard", "blake3"}  # may be imported at the head of a module


def test_the_version_is_printed_as_gnu_tools_do(vtools):
    assert re.fullmatch(rb"vtools \d+\.\d+\.\d+\n", vtools("--version").stdout)


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_tool_has_help_with_examples(vtools, command, flag):
    done = vtools(*([command] if command else []), flag)
    assert done.returncode == 0
    assert done.errors == ""
    if command:
        assert "Examples:\n" in done.stdout.decode()


@pytest.mark.parametrize(
    "args",
    [["clean", "--format", "messages", "--format", "sharegpt"], ["train", "--model", "a", "--compile", "--no-compile"],
     ["judge", "--model=a", "--model", "b"], ["split", "-j", "1", "--jobs", "2"]],
)  # fmt: skip
def test_an_option_given_twice_is_refused_and_never_the_last_one_taken(vtools, args):
    done = vtools(*args)
    assert done.returncode == 2 and "is given 2 times: give it once" in done.errors and done.stdout == b""


@pytest.mark.parametrize("args", [["--help"], *([command, "--help"] for command in COMMANDS), ["fetch"], ["clean"]])
def test_start_up_imports_nothing_heavy(args):
    code = (
        "import sys; from vtools.cli import main\n"
        f"sys.argv = ['vtools', *{args!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    loaded = set(python(code).errors.rpartition("loaded: ")[2].split())
    assert "vtools" in loaded
    assert not loaded & {*HEAVY, "pydantic"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports anywhere, for type checkers too."""
    found = imports(path)
    return {name for name in found if name in modules} | {
        name.rpartition(".")[0] for name in found if name not in modules and name.rpartition(".")[0] in modules
    }


def test_every_package_stands_on_the_floors_below_it():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_no_module_imports_itself_through_others():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "vtools").rglob("*.py")
    }
    graph = {name: {other for other in imported(path, modules) if other != name} for name, path in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


NAMES = {"bs4": "beautifulsoup4", "google": "protobuf"}


def libraries() -> set[str]:
    """Everything that is imported anywhere and is neither ours nor Python's."""
    found = {name.partition(".")[0] for path in (ROOT / "vtools").rglob("*.py") for name in imports(path)}
    return found - sys.stdlib_module_names - {"vtools"}


def declared(*extras: str) -> set[str]:
    """The libraries of the core, or of extras with those that they include."""
    optional = PROJECT["project"]["optional-dependencies"]
    found, items = set(), [item for extra in extras for item in optional[extra]]
    for item in items if extras else PROJECT["project"]["dependencies"]:
        if included := re.fullmatch(r"vtools-chat\[(.+)\]", item):
            found |= declared(*included[1].split(","))
        else:
            found.add(re.split(r"[\[<>=~! ]", item)[0].lower().replace("-", "_"))
    return found


def test_every_library_that_is_imported_is_declared():
    everywhere = declared() | declared(*PROJECT["project"]["optional-dependencies"])
    assert {NAMES.get(name, name) for name in libraries()} <= everywhere


def test_every_missing_library_ends_in_the_name_of_its_extra():
    assert set(process.EXTRAS) == {name for name in libraries() if NAMES.get(name, name) not in declared()}
    for module, extra in process.EXTRAS.items():
        assert NAMES.get(module, module) in declared(extra), module


def test_every_library_that_takes_time_to_import_is_imported_only_where_it_is_used():
    assert libraries() - LIGHT == HEAVY


def test_the_same_flag_means_the_same_in_every_tool():
    import typer.main

    meanings: dict[str, tuple] = {}
    shared = {
        "-q",
        "-v",
        "-j",
        "-n",
        "--seed",
        "--rejects",
        "--stats",
        "--template",
        "--format",
        "--quiet",
        "--verbose",
        "--jobs",
        "--dry-run",
        "--plot",
        "--base-url",
        "--timeout",
        "--temperature",
    }
    for command in typer.main.get_command(cli.build()).commands.values():
        for option in command.params:
            for name in set(option.opts) & shared:
                meaning = (option.is_flag, tuple(sorted(option.opts)), option.help)
                assert meanings.setdefault(name, meaning) == meaning, f"{command.name} {name}"


def test_completions_are_fresh():
    for name, write in completions.FILES.items():
        assert (ROOT / "completions" / name).read_text() == write(), "run: python -m vtools.completions completions"


def test_bash_completes_commands_and_options_without_python():
    script = (
        f"source {ROOT / 'completions' / 'vtools.bash'}; PATH=/nowhere\n"
        "COMP_WORDS=(vtools cl); COMP_CWORD=1; _vtools; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(vtools clean --rej); COMP_CWORD=2; _vtools; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(vtools clean --preset ''); COMP_CWORD=3; _vtools; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(vtools train --preset v); COMP_CWORD=3; _vtools; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(vtools split -q --template ll); COMP_CWORD=4; _vtools; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(vtools clean --out ''); COMP_CWORD=3; _vtools; echo ${COMPREPLY[@]}\n"
    )
    done = subprocess.run([shutil.which("bash"), "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["clean", "--rejects", "vicuna", "vicuna-v1.1 vicuna-v0", "llama-2", ""]
    assert done.stderr == ""


def test_every_value_that_an_option_offers_is_one_that_it_takes():
    for name in completions._values(SimpleNamespace(type=None, opts=["--gpu"])):
        assert machine.gpu(name)
    offered = {option.opts[0] for _, options in completions.commands().values() for option in options if completions._values(option)}  # fmt: skip
    assert offered >= {"--template", "--gpu", "--preset", "--dtype", "--format", "--type", "--overlong", "--codec"}


@pytest.mark.parametrize(("shell", "file"), [("zsh", "_vtools"), ("fish", "vtools.fish")])
def test_the_other_shells_accept_their_files(shell, file):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", str(ROOT / "completions" / file)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistyped_command_is_exit_2(vtools):
    done = vtools("claen")
    assert done.returncode == 2
    assert "clean" in done.errors


def test_no_committed_file_names_a_place_outside_the_project():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed:
        text = (ROOT / name).read_bytes()
        assert not re.search(rb"/(work|opt|root)/[a-z]", text) or name == "tests/test_cli.py", name


def test_verbose_shows_where_an_error_came_from(vtools, tmp_path):
    (tmp_path / "raw.jsonl").write_text("not json\n")
    for extra, shown in (([], False), (["-v"], True)):
        done = vtools("clean", "raw.jsonl", *extra)
        assert done.returncode == 1 and ("Traceback" in done.errors) is shown and "NoneType: None" not in done.errors
