"""make-delta and apply-delta, killed, interrupted or disturbed: whole or not at all, and the same command goes on."""

import json
import os
import shutil
import signal

import pytest

np = pytest.importorskip("numpy")
blake3 = pytest.importorskip("blake3").blake3

from checkpoints import contents, first_tensor, halted, model, names, pair, weights, write  # noqa: E402
from running import bad, good, python, run  # noqa: E402

from vtools.files import staging  # noqa: E402
from vtools.files.lock import lock  # noqa: E402
from vtools.records import jsonl  # noqa: E402
from vtools.weights import writing  # noqa: E402

TENSORS = 60


def many(folder, seed, near=None, scale=1.0):
    """A model of so many tensors that their lines do not fit into a pipe of one page; its tensors."""
    tensors = {}
    for place in range(TENSORS):
        values = weights("F16", (64, 64), (seed, place), near[f"layer.{place}"][1] if near else None)
        tensors[f"layer.{place}"] = "F16", values * np.float16(scale)
    write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    return tensors


# All that resumes where it stopped: a delta made, one applied, and one without a manifest added.
TOOLS = ["make", "apply", "add"]


def inputs_of(tool, folder):
    """Such models, and a command on them up to its output folder."""
    base, target = folder / "base", folder / "target"
    many(target, 2, near=many(base, 1))
    if tool == "make":
        return ["make-delta", base, target]
    if tool == "add":
        many(folder / "published", 3, scale=0.02)
        return ["apply-delta", base, folder / "published"]
    good("make-delta", base, target, folder / "delta")
    return ["apply-delta", base, folder / "delta"]


def killed(*arguments, lines=1):
    """Stop such a run with -9."""
    with halted(*arguments, lines=lines) as running:
        running.kill()
        running.communicate(timeout=60)


def finished(out):
    """How many tensors a run that was stopped had noted as finished: some, but not all."""
    count = len((out.parent / f"{out.name}.partial/journal").read_bytes().splitlines()) - 1
    assert 1 <= count < TENSORS and not out.exists()
    return count


def flip(file, place):
    """Flip a bit of a file in place."""
    with open(file, "r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("tool", [*TOOLS, "replace"])
def test_killed_again_and_again_the_rerun_finishes_right(tmp_path, tool):
    command = inputs_of("apply" if tool == "replace" else tool, tmp_path)
    out, before, force = tmp_path / "out", {}, []
    good(*command, tmp_path / "whole")
    wanted, others = contents(tmp_path / "whole"), names(tmp_path)
    if tool == "replace":
        model(out)
        before, force = contents(out), ["--force"]
    for lines in (1, 10, 20):  # and 35 more in the pipe
        killed(*command, out, *force, lines=lines)
        assert contents(out) == before and (tmp_path / "out.partial/fresh").exists()
    killed(*command, out, *force, lines=TENSORS)  # anywhere between the last tensor and the end
    assert contents(out) in (before, wanted)
    good(*command, out, "--force")
    assert contents(out) == wanted
    assert names(tmp_path) == sorted([*others, "out"])


def test_killed_between_the_two_renames_the_old_folder_is_not_lost(tmp_path):
    base, target = pair(tmp_path)
    good("make-delta", base, target, tmp_path / "delta")
    # What is on disk then: the old folder set aside, the new one whole but not yet under its name.
    model(tmp_path / "out.partial/replaced")
    shutil.copytree(target, tmp_path / "out.partial/fresh")
    (tmp_path / "out.partial/.lock").touch()
    (tmp_path / "out.partial/journal").write_text('{"making":"it"}\n')
    old = contents(tmp_path / "out.partial/replaced")
    assert "--force" in bad("apply-delta", base, tmp_path / "delta", tmp_path / "out")
    assert contents(tmp_path / "out") == old
    assert names(tmp_path) == ["base", "delta", "out", "target"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("tool", TOOLS)
def test_an_interrupted_run_dies_of_the_signal_and_the_same_command_continues(tmp_path, tool, signum):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    with halted(*command, out) as running:
        running.send_signal(signum)
        error = running.communicate(timeout=60)[1].decode()
    assert running.returncode == -signum
    assert "Traceback" not in error and "out.partial: kept; repeat the command to resume" in error
    count = finished(out)
    *_, totals = good(*command, out)
    assert totals["reused"] == count and not (tmp_path / "out.partial").exists()
    good(*command, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_wrong_base_by_mistake_does_not_undo_an_earlier_runs_work(tmp_path):
    command, out = inputs_of("apply", tmp_path), tmp_path / "out"
    many(tmp_path / "other", 9)
    killed(*command, out)
    count = finished(out)
    done = run("apply-delta", tmp_path / "other", tmp_path / "delta", out)
    assert done.returncode == 1 and "out.partial: kept" in done.errors and finished(out) == count
    *_, totals = good(*command, out)
    assert totals["reused"] == count and contents(out) == contents(tmp_path / "target")


@pytest.mark.parametrize("tool", ["make", "add"])  # where a manifest has no hashes to check the inputs by
def test_inputs_that_change_between_a_kill_and_the_rerun_are_noticed(tmp_path, tool):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    killed(*command, out)
    assert finished(out)
    old = tmp_path / "base/model.safetensors"
    about, raw = old.stat(), bytearray(old.read_bytes())
    raw[first_tensor(old) + 100] ^= 1  # in a tensor that is done
    old.unlink()
    old.write_bytes(raw)
    os.utime(old, ns=(about.st_atime_ns, about.st_mtime_ns))  # the same size and time, as `cp -p` leaves it
    *_, totals = good(*command, out)
    assert totals["reused"] == 0
    good(*command, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("changed", [1, 2])
@pytest.mark.parametrize("tool", ["make", "add"])
def test_inputs_that_change_while_they_are_read_are_noticed(tmp_path, tool, changed):
    command = inputs_of(tool, tmp_path)
    before = names(tmp_path)
    with halted(*command, tmp_path / "out") as running:
        file = command[changed] / "model.safetensors"
        flip(file, file.stat().st_size - 1)
        error = running.communicate(timeout=60)[1].decode()
    assert running.returncode == 1 and "a file changed while it was read" in error
    assert names(tmp_path) == before


@pytest.mark.parametrize("tool", TOOLS)
def test_what_was_damaged_since_a_kill_is_made_again(tmp_path, tool):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    good(*command, tmp_path / "whole")
    (file,) = (tmp_path / "whole").glob("*.safetensors")
    killed(*command, out)
    count = finished(out)
    flip(tmp_path / "out.partial/fresh" / file.name, first_tensor(file) + 100)
    *_, totals = good(*command, out)
    assert totals["reused"] == count - 1 and contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_journal_that_was_damaged_since_a_kill_is_not_believed(tmp_path, tool):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    good(*command, tmp_path / "whole")
    killed(*command, out)
    count, journal = finished(out), tmp_path / "out.partial/journal"
    key = b'"blake3":"'
    flip(journal, journal.read_bytes().index(key) + len(key))  # another digit
    *_, totals = good(*command, out)
    assert totals["reused"] == count - 1 and contents(out) == contents(tmp_path / "whole")


def test_an_older_owner_that_finishes_never_leaves_two_at_work(tmp_path):
    """The lock's file goes with the folder: who opened it before that must not believe that it owns the next one."""
    work = tmp_path / "work"
    with lock(work):
        handle = os.open(work / ".lock", os.O_RDWR)
    shutil.rmtree(work)
    with lock(work):
        assert not os.path.samestat(os.fstat(handle), os.stat(work / ".lock"))
        script = "import sys; from vtools.files.lock import lock\nwith lock(sys.argv[1]): pass"
        assert "another vtools process" in python(script, work).errors
    os.close(handle)


def test_what_was_begun_for_other_inputs_is_thrown_away(tmp_path):
    command, out = inputs_of("apply", tmp_path), tmp_path / "out"
    many(tmp_path / "third", 3, near=many(tmp_path / "base", 1))
    good("make-delta", tmp_path / "base", tmp_path / "third", tmp_path / "other")
    killed(*command, out)
    assert finished(out)
    *_, totals = good("apply-delta", tmp_path / "base", tmp_path / "other", out)
    assert totals["reused"] == 0 and contents(out) == contents(tmp_path / "third")


@pytest.mark.parametrize("tool", TOOLS)
def test_two_runs_on_one_folder_do_not_mix(tmp_path, tool):
    command, out = inputs_of(tool, tmp_path), tmp_path / "out"
    good(*command, tmp_path / "whole")
    with halted(*command, out) as running:
        assert "another vtools process" in bad(*command, out, code=75)
        assert running.poll() is None
        running.communicate(timeout=60)
    assert running.returncode == 0 and contents(out) == contents(tmp_path / "whole")


def test_the_last_tensor_if_it_is_the_largest_is_begun_first_and_reported_last(tmp_path, capfd):
    begun = []

    def part(name, start, size):
        def chunks(files):
            begun.append(name)
            yield np.zeros(size, np.uint8)

        return writing.Part(name, "weights", start, size, chunks)

    parts = [*(part(f"layer.{place}", 10 * place, 10) for place in range(20)), part("head", 200, 100)]
    with staging.folder(tmp_path / "out", [], False, "test") as work, jsonl.output(None) as lines:
        writing.allocate(work.fresh / "weights", 300)
        writing.write(parts, work, 1, lines, lambda size: None)
    assert begun == ["head", *(f"layer.{place}" for place in range(20))]
    assert [json.loads(line)["tensor"] for line in capfd.readouterr().out.splitlines()] == [*begun[1:], "head"]
