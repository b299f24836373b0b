"""An output folder appears whole or not at all, also where a run ends between its last steps."""

import os
import signal

import pytest
from checkpoints import contents, model, names, pair
from running import bad, good, python, run

pytest.importorskip("numpy")

# vtools, killed as the folder OUT gets its name.
KILLED = """
import os, signal, sys
from vtools import cli
when, out, *sys.argv[1:] = sys.argv[1:]
rename = os.rename

def killed(source, target):
    landing = os.path.basename(source) == "fresh" and str(target) == os.path.realpath(out)
    if landing and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if landing:
        os.kill(os.getpid(), signal.SIGKILL)

os.rename = killed
cli.main()
"""


def kill(when, out, *arguments):
    assert python(KILLED, when, out, *arguments).returncode == -signal.SIGKILL


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_killed_as_its_folder_gets_its_name_ends_well_when_it_is_repeated(tmp_path, when, force):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    out, old = tmp_path / "out", []
    if force:
        model(out, seed=7)
        old = ["--force"]
    command = ["apply-delta", base, tmp_path / "delta", out, *old]
    kill(when, out, *command)
    assert (out.exists(), (tmp_path / "out.partial").exists()) == (when == "after", True)
    last = good(*command)[-1]
    assert last["reused"] == last["tensors"] == 3
    assert contents(out) == contents(target)
    assert names(tmp_path) == ["base", "delta", "out", "target"]


def test_what_a_killed_run_put_in_place_is_no_part_of_another_command(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    kill("after", tmp_path / "out", "apply-delta", base, tmp_path / "delta", tmp_path / "out")
    error = bad("export", target, "--to", "safetensors", "-o", tmp_path / "out")
    assert "exists and is not empty; --force replaces it" in error
    assert contents(tmp_path / "out") == contents(target)
    assert names(tmp_path) == ["base", "delta", "out", "target"]


def test_files_that_are_no_part_of_a_model_may_change_while_it_is_read(tmp_path):
    base, target = pair(tmp_path)
    (target / ".git").mkdir()
    good("make-delta", base, target, tmp_path / "delta")
    kill("before", tmp_path / "out", "export", target, "--to", "safetensors", "--dtype", "fp32", "-o", tmp_path / "out")
    (target / ".git/index").write_text("git status writes here")
    (target / "checkpoint-5").mkdir()
    (target / "checkpoint-5/model.safetensors").write_text("half")
    last = good("export", target, "--to", "safetensors", "--dtype", "fp32", "-o", tmp_path / "out")[-1]
    assert last["reused"] == 3


def test_a_link_that_leads_to_itself_beside_the_base_is_nobodys_business(tmp_path):
    base, target = pair(tmp_path)
    (base / "loop").symlink_to("loop")
    good("make-delta", base, target, tmp_path / "delta")
    good("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(target)


def test_a_name_that_moves_the_cursor_is_shown_and_not_obeyed(tmp_path):
    done = run("apply-delta", tmp_path, tmp_path / "\x1b[2Jdelta", tmp_path / "out")
    assert done.returncode == 1 and "\x1b" not in done.errors
    assert "\\u001b[2Jdelta" in done.errors


def test_a_folder_whose_name_is_not_utf_8_is_named_before_any_work(tmp_path):
    base, target = pair(tmp_path)
    os.mkdir(os.fsencode(target) + b"/caf\xe9")
    with open(os.fsencode(target) + b"/caf\xe9/notes.txt", "w") as stream:
        stream.write("x")
    assert "its name is not UTF-8; rename it" in bad("make-delta", base, target, tmp_path / "delta")
