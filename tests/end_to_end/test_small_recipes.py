"""The recipes for one GPU, Alpaca's, and the notebook, run on the small model; the table of costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from running import ROOT, execute, on_path

RECIPES = ROOT / "recipes"
INSTALLED = ["nbclient", "ipykernel"]


def test_the_notebook_is_the_one_that_its_command_writes() -> None:
    done = execute([sys.executable, str(RECIPES / "notebook.py"), str(RECIPES / "colab.sh")])
    assert done.stdout == (RECIPES / "colab.ipynb").read_bytes()
    sources = ["".join(cell["source"]) for cell in json.loads(done.stdout)["cells"] if cell["cell_type"] == "code"]
    assert len(sources) == 5 and all(source.startswith("%%bash\nset -euo pipefail\n") for source in sources)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_runs_from_its_first_cell_to_its_last(installed, recipes, tmp_path, tmp_path_factory):
    venv = tmp_path_factory.mktemp("jupyter")
    for command in ([sys.executable, "-m", "venv", venv], [venv / "bin/pip", "install", "-q", *INSTALLED]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"Jupyter cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    (tmp_path / "colab.ipynb").write_bytes((recipes / "colab.ipynb").read_bytes())
    env = installed | {"HOME": str(tmp_path)}
    command = [str(venv / "bin/jupyter-execute"), "--inplace", "--timeout=900", "colab.ipynb"]
    done = execute(command, cwd=tmp_path, env=env, timeout=1000)
    assert done.returncode == 0, done.errors
    cells = [
        cell for cell in json.loads((tmp_path / "colab.ipynb").read_text())["cells"] if cell["cell_type"] == "code"
    ]
    assert all(cell["execution_count"] for cell in cells)
    assert (tmp_path / "vtools-colab/after.txt").read_text().strip()
    assert (tmp_path / "vtools-colab/tuned/adapter/adapter_config.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_alpaca_from_a_wheel_goes_from_instructions_to_answers(installed, recipes, tmp_path):
    command = ["bash", str(recipes / "alpaca.sh"), "", "", "run"]
    stamps = []
    for _ in range(2):
        done = execute(command, cwd=tmp_path, env=installed, timeout=900)
        assert done.returncode == 0, done.errors
        stamps.append((tmp_path / "run/answers.jsonl").stat().st_mtime_ns)
    assert stamps[0] == stamps[1]
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    published = {"template": "alpaca", "epochs": 3, "max_tokens": 512, "ranks": 4, "conversations": 20}
    assert {name: plan[name] for name in published} == published
    assert len((tmp_path / "run/answers.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
def test_the_table_of_costs_has_the_prices_of_the_file_and_counts_tokens_as_sentencepiece_does(llama, tmp_path):
    rows = [{"id": f"row-{number}", "messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi! " * number}]} for number in range(1, 40)]  # fmt: skip
    (tmp_path / "clean.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prices.json").write_text('{"gpu": {"a100": 1000000, "a100-spot": 500000}}')
    command = [sys.executable, str(RECIPES / "cost.py"), "clean.jsonl", "--tokenizer", llama]
    env = {"PATH": on_path(tmp_path / "bin")}
    done = execute([*command, "--conversations", "3900", "--prices", "prices.json"], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.errors
    page = done.stdout.decode()
    assert "over 3,900 conversations\nwith the lengths of 39 cleaned real ones" in page and ": 0.000% off" in page
    table = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(("| 7B", "| 13B"))]
    assert len(table) == 8 and table[0][:2] == ["7B", "8 × A100-40G"]
    on_demand, spot = (float(cell.strip("$").replace(",", "")) for cell in table[0][-2:])
    assert on_demand == pytest.approx(2 * spot, rel=0.01) and table[1][-2:] == ["?", "?"]
    operations = [float(row[4]) for row in table]
    assert operations[4] == pytest.approx(operations[0] * 13.0 / 6.7, rel=0.05)
