#!/usr/bin/env bash
# The tests. `bash tests/run.sh` is the quick suite; `--all` adds recipes, faults and benchmarks against peers.
# Other arguments go to pytest: bash tests/run.sh -k template
set -euo pipefail
cd "$(dirname "$0")/.."
bash recipes/setup.sh
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false

select=(-m "not slow and not gpu")
if [ "${1:-}" = --all ]; then
    shift
    select=()
    python -m pip install --quiet --disable-pip-version-check --no-deps fschat==0.2.36 xllamacpp==2026.10.11549 2>/dev/null ||
        echo "the peers could not be installed; their comparisons will be skipped" >&2
fi
ruff check .
ruff format --check --quiet .
mypy
python -m pytest -q "${select[@]}" "$@"
