"""make-delta and apply-delta, killed with -9 again and again, their half-done work damaged in between."""

import json
import random
import shutil
import signal
import time

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("blake3")

from checkpoints import contents, weights, write  # noqa: E402
from running import good, start  # noqa: E402

TENSORS = 40


def model(folder, seed, near=None, deviation=None):
    """Forty matrices of 2 MB in two files, and a configuration; `near` makes a fine-tune, `deviation` a delta."""
    tensors = {}
    for number in range(TENSORS):
        values = weights("F16", (1024, 1024), (seed, number), near[f"layer.{number}"][1] if near else None)
        tensors[f"layer.{number}"] = "F16", values if deviation is None else (values * np.float16(deviation))
    items = list(tensors.items())
    for part, group in ((1, items[:25]), (2, items[25:])):
        write(folder / f"model-{part:05}-of-00002.safetensors", dict(group))
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    return tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Base, target, the deltas in both codings and one without a manifest, and what each command gives undisturbed."""
    folder = tmp_path_factory.mktemp("models")
    model(folder / "target", 2, near=model(folder / "base", 1))
    model(folder / "published", 3, deviation=0.025)
    commands = {
        "make zstd": ["make-delta", folder / "base", folder / "target", "--codec", "zstd"],
        "make raw": ["make-delta", folder / "base", folder / "target", "--codec", "raw"],
        "apply zstd": ["apply-delta", folder / "base", folder / "make zstd"],
        "apply raw": ["apply-delta", folder / "base", folder / "make raw"],
        "add": ["apply-delta", folder / "base", folder / "published"],
    }
    for name, command in commands.items():
        good(*command, "-o", folder / name)
    assert contents(folder / "apply zstd") == contents(folder / "apply raw") == contents(folder / "target")
    return folder, commands


def killed(command, chance):
    """Kill a run some time after a random tensor; whether that stopped it before its end."""
    with start(*command) as running:
        for _ in range(chance.randrange(TENSORS)):
            running.stdout.readline()
        time.sleep(chance.random() * 0.03)
        running.kill()
        error = running.communicate()[1].decode()
    assert running.returncode in (-signal.SIGKILL, 0), error
    return running.returncode != 0


def damage(folder, chance):
    """Flip a bit of the journal or of a file that is being written."""
    path = chance.choice([folder / "journal", *sorted((folder / "fresh").rglob("*.safetensors"))])
    raw = bytearray(path.read_bytes())
    first = len(b'{"making":') if path.name == "journal" else 0  # a journal that begins otherwise is not ours
    if len(raw) > first:
        raw[chance.randrange(first, len(raw))] ^= 1 << chance.randrange(8)
        path.write_bytes(raw)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["make zstd", "make raw", "apply zstd", "apply raw", "add"])
def test_killed_at_random_moments_every_rerun_goes_on_and_the_end_is_right(tmp_path, models, name):
    folder, commands = models
    wanted, out = contents(folder / name), tmp_path / "out"
    command = [*commands[name], "-o", out]
    chance = random.Random(name)
    kills = reused = 0
    while kills < 30:
        kills += (stopped := killed(command, chance))
        if out.exists():  # it had ended, or was killed after its last rename
            assert contents(out) == wanted
            shutil.rmtree(out)
        elif chance.random() < 0.5 and (tmp_path / "out.partial/fresh").exists():
            damage(tmp_path / "out.partial", chance)
        if kills % 5 == 0 and stopped:
            *_, totals = good(*command)
            assert contents(out) == wanted
            assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
            reused += totals["reused"]
            shutil.rmtree(out)
    assert reused > 10
