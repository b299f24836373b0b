"""`vtools train`, the command: its metrics, what ends up in the folder, and what it refuses."""

from __future__ import annotations

import fcntl
import importlib
import inspect
import json
import math
import resource
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import bad, good, run, with_options
from training import finish

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from vtools.process import Failure  # noqa: E402
from vtools.train import card, run_identity  # noqa: E402

METRICS = [
    "step", "epoch", "loss", "lr", "grad_norm", "tokens", "trained_tokens", "data_ms", "tokens_per_s", "mfu", "mem_gb",
    "ms", "ckpt_ms", "eta_s",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One whole run from stdin, of data that holds a bad line, an unanswered and an overlong conversation."""
    folder = tmp_path_factory.mktemp("finished")
    records: list[Any] = tiny.conversations(20)
    records[3] = {"id": "unanswered", "messages": [{"role": "user", "content": "anyone there?"}]}
    records[5] = {
        "id": "shaped",
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "a cat"}],
    }
    records[7]["messages"][1]["content"] = "the cat sat " * 60
    text = "".join(json.dumps(record) + "\n" for record in records[:9]) + "{torn\n"
    text += "".join(json.dumps(record) + "\n" for record in records[9:])
    held = tiny.write(folder / "held.jsonl", tiny.conversations(4, seed=9))
    arguments = [
        "--model",
        base,
        "--out",
        folder / "out",
        "--eval",
        held,
        "--eval-every",
        4,
        "--batch",
        4,
        "--epochs",
        4,
    ]
    arguments += ["--lr", 1e-2, "--max-tokens", 128, "--rejects", folder / "rejects.jsonl", "--dtype", "fp32"]
    done = finish(*arguments, stdin=text)
    return {"folder": folder, "arguments": arguments, "text": text, "rows": done.records, "stderr": done.errors}


def test_metrics_have_one_line_a_step_and_the_held_out_loss_falls(finished: dict[str, Any]) -> None:
    rows = finished["rows"]
    head, *rest = rows
    assert head["steps"] == 20 and head["conversations"] == 19 and head["truncated"] >= 1
    steps = [row for row in rest if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
    for row in steps:
        assert list(row) == METRICS
        # No peak is known for a CPU, and an invented one would flatter.
        assert all(math.isfinite(value) if key != "mfu" else value is None for key, value in row.items())
        assert 0 < row["trained_tokens"] < row["tokens"]
    assert sum(row["tokens"] for row in steps) == 4 * head["data_tokens"]
    assert sum(row["trained_tokens"] for row in steps) == 4 * head["data_trained_tokens"]
    assert steps[4]["epoch"] == 1.0 and steps[-1]["epoch"] == 4.0
    assert steps[0]["lr"] == 0 and steps[1]["lr"] == 1e-2
    held = [row for row in rest if "eval_loss" in row]
    assert [row["step"] for row in held] == [0, 4, 8, 12, 16, 20]
    assert all(set(row) == {"step", "eval_loss", "eval_tokens", "ms"} for row in held)
    assert held[-1]["eval_loss"] < held[0]["eval_loss"] - 1
    assert [row["step"] for row in rest[:2]] == [0, 1] and rest[-1]["step"] == 20 and "eval_loss" in rest[-1]


def test_what_cannot_be_trained_is_counted_and_saved_with_its_reason(finished: dict[str, Any]) -> None:
    rejects = [json.loads(line) for line in (finished["folder"] / "rejects.jsonl").read_bytes().splitlines()]
    assert Counter(row["reason"] for row in rejects) == {"bad_json": 1, "template_error": 1}
    assert next(row for row in rejects if row["reason"] == "template_error")["id"] == "unanswered"
    assert finished["rows"][0]["reasons"] == {"bad_json": 1, "template_error": 1}
    assert "21 in, 19 out, 2 rejected" in finished["stderr"]


def test_the_folder_says_what_the_model_was_made_from(finished: dict[str, Any]) -> None:
    out = finished["folder"] / "out"
    about = json.loads((out / "vtools.json").read_text())
    assert about["data"]["sources"] == {"own": 10, "sharegpt": 8, "unknown": 1}
    assert about["data"]["licenses"] == {"none": 18, "unknown": 1}
    assert about["result"]["steps"] == 20
    assert about["run"]["--dtype"] == about["arguments"]["dtype"] == "fp32"
    rows = finished["rows"]
    assert about["result"]["loss"] == next(row for row in reversed(rows) if "loss" in row)["loss"]
    held = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert [about["result"][f"eval_loss_{when}"] for when in ("before", "after")] == [held[0], held[-1]]
    assert {"vtools", "torch", "transformers", "python"} <= about["versions"].keys()
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert not (out / "checkpoints").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_no_text_of_the_data_breaks_the_tables_of_the_model_card(finished: dict[str, Any]) -> None:
    about = json.loads((finished["folder"] / "out" / "vtools.json").read_text())
    about["data"]["sources"] = {"a|b\n# no heading": 3}
    assert "| source | a\\|b # no heading | 3 |\n" in card.card(about)


@pytest.mark.parametrize("text", ['{"run": "x"}', '{"run": null}', "{}", "[]", "{"])
def test_a_folder_of_another_program_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "vtools.json").write_text(text)
    with pytest.raises(Failure, match=r"vtools\.json: not written by `vtools train`; choose another --out"):
        run_identity.finished(tmp_path, {"--lr": 1})


def test_what_decides_about_a_run_goes_by_the_names_of_options(finished: dict[str, Any]) -> None:
    import typer.main

    from vtools import cli

    about = json.loads((finished["folder"] / "out" / "vtools.json").read_text())
    known = {
        name for option in typer.main.get_command(cli.build(["train"])).commands["train"].params for name in option.opts
    }
    named = {key for key in about["run"] if key.startswith("--")}
    parameters = inspect.signature(importlib.import_module("vtools.train").train).parameters.keys()
    assert parameters >= run_identity.BY_OUTCOME | run_identity.UNDECIDING
    assert named <= known and {"--model", "--lr", "--seed"} <= named
    assert {f"--{key.replace('_', '-')}" for key in about["arguments"]} <= known


def test_a_finished_run_given_again_changes_nothing_and_another_is_refused(finished: dict[str, Any]) -> None:
    out = finished["folder"] / "out"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    again = run("train", *finished["arguments"], stdin=finished["text"])
    assert again.returncode == 0 and again.stdout == b"" and b"nothing to do" in again.stderr
    other = run("train", *with_options(finished["arguments"], "--lr", 3e-3), stdin=finished["text"])
    assert other.returncode == 1 and b"--lr was 0.01, now 0.003" in other.stderr
    other = run("train", *finished["arguments"], stdin=finished["text"] + '{"prompt": "a", "completion": "b"}\n')
    assert other.returncode == 1 and b"data was" in other.stderr and b"Traceback" not in other.stderr
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}


def test_a_locked_folder_is_left_alone(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = run("train", "--model", base, "--out", out, stdin=b"")
    assert done.returncode == 75 and b"another vtools process" in done.stderr


def test_a_dry_run_shows_the_job_and_its_cost_and_reads_no_weights(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "without weights"
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(9))
    arguments = ["--model", folder, "--data", path, "--batch", 2, "--epochs", 3, "-n"]
    prices = tmp_path / "prices.json"
    prices.write_text('{"gpu": {"h200": 2}}')
    done = finish(*arguments, "--gpu", "h200", "--nproc", 8, "--prices", prices)
    (row,) = done.records
    assert row["conversations"] == 9 and row["steps"] == 15 and 0 < row["trained_share"] < 1
    assert row["ranks"] == 8 and row["device"] == "h200" and row["dtype"] == "bf16" and row["problem"] is None
    assert row["usd"] == pytest.approx(row["seconds"] / 3600 * 8 * 2, abs=0.01)
    assert 0 < row["memory_gb"]["total"] < row["memory_gb"]["available"] > 140
    (here,) = good("train", *arguments)
    assert here["device"] == "cpu" and here["seconds"] is not None and here["usd"] is None
    assert here["flops"] == row["flops"]
    assert "no price for the gpu here; it has h200" in bad("train", *arguments, "--prices", prices)
    answers = [message["content"] for message in tiny.conversations(9)[0]["messages"] if message["role"] == "assistant"]
    for answer in answers:
        assert f"<|im_start|>assistant\n⟦{answer}<|im_end|>⟧" in done.errors


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("vicuna-v1.1", [], {"batch": 128, "lr": 2e-5, "warmup": 0.03, "epochs": 3, "max_tokens": 2048}),
        ("vicuna-v0", [], {"batch": 32, "lr": 2e-5, "warmup": 0.03, "epochs": 3, "max_tokens": 2048}),
        ("alpaca", [], {"batch": 128, "lr": 2e-5, "warmup": 0.03, "epochs": 3, "max_tokens": 512}),
        ("alpaca", ["--lr", "1e-5", "--epochs", "5"], {"batch": 128, "lr": 1e-5, "epochs": 5, "template": "alpaca"}),
    ],
)
def test_a_preset_is_the_published_recipe_and_a_flag_wins_over_it(
    preset: str, changes: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtools import cli
    from vtools.train import dry_run

    seen: list[Any] = []
    monkeypatch.setattr(dry_run, "foreseen", lambda request: seen.append(request) or {})
    with pytest.raises(SystemExit):
        cli.build(["train"])(["train", "--model", "x", "--preset", preset, "-n", *changes])
    request = vars(seen[0])
    assert {key: request[key] for key in expected} == expected
    assert request["template"] == preset and request["schedule"] == "cosine"


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (b"", "no conversations"),
        (b'{"messages": [{"role": "user", "content": "hello"}]}\n', "no conversation has a token to train"),
        (b'{"prompt": "a", "completion": "b"}\n', "--warmup 0"),
        (b'{"prompt": "a", "comp', "stdin:1"),
    ],
)
def test_input_that_teaches_nothing_is_refused_with_advice(stdin: bytes, says: str, base: Path, tmp_path: Path) -> None:
    done = run("train", "--model", base, "--out", tmp_path / "out", "--epochs", 1, stdin=stdin)
    message = done.errors
    assert done.returncode == 1 and says in message and "Traceback" not in message
    assert done.stdout == b""


def test_a_loss_that_is_no_number_stops_the_run_and_spares_what_was_saved(base: Path, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(12))
    out = tmp_path / "out"
    done = run("train",
        "--model", base, "--data", path, "--out", out, "--batch", 4, "--lr", 1e38, "--warmup", 2, "--save-every", 1,
        "--dtype", "fp32",
    )  # fmt: skip
    message = done.errors
    assert done.returncode == 1 and "diverged" in message and "--lr" in message and "Traceback" not in message
    assert all(math.isfinite(row["loss"]) for row in done.records if "loss" in row)
    assert (out / "checkpoints" / "step-1" / "note.json").exists()
    assert not (out / "vtools.json").exists()


def test_a_disk_without_room_ends_the_run_in_one_line_and_leaves_no_torn_checkpoint(base: Path, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(12))
    limit = 600_000  # bytes a file: a checkpoint has twice as many
    done = run(
        "train", "--model", base, "--data", path, "--out", tmp_path / "out", "--batch", 4, "--save-every", 2,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    message = done.errors
    assert done.returncode == 1 and "cannot be saved" in message and "Traceback" not in message
    assert len([row for row in done.records if "loss" in row]) in (2, 3)  # the third may run while that is written
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []


def test_a_tokenizer_larger_than_the_model_is_refused_before_training(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = 60
    (folder / "config.json").write_text(json.dumps(config))
    path = tiny.write(tmp_path / "data.jsonl", tiny.conversations(4))
    done = run("train", "--model", folder, "--data", path, "-n")
    assert done.returncode == 1 and b"only 60 rows" in done.stderr
