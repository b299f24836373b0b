#!/usr/bin/env bash
# The tests. `bash tests/run.sh` is the quick suite, in two processes; `--all` adds recipes, faults and benchmarks against
# peers. Other arguments go to pytest: bash tests/run.sh -n 0 -k template
set -euo pipefail
cd "$(dirname "$0")/.."
bash recipes/setup.sh
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false

select=(-m "not slow and not gpu")
all=
if [ "${1:-}" = --all ]; then
    shift
    all=yes
    select=()
fi
# Programs that some tests drive, and skip without.
[ -z "$all" ] || [ "$(id -u)" != 0 ] || apt-get -qq install -y chromium parallel tmux > /dev/null 2>&1 || true
ruff check .
ruff format --check --quiet .
mypy
python -m pytest -q -n 2 --dist worksteal --durations=10 "${select[@]}" "$@"
[ -n "$all" ] && [ $# = 0 ] || exit 0

# apply-delta beside cp and FastChat: bytes per second, memory, processor seconds.
python tests/bench/delta_peers.py --rounds 1 --fastchat-rounds 1 --folder "$(mktemp -d)" --clean

# The trainer beside its peer, in one run: ratios for people to read. It needs the machine to itself, for ten minutes.
python -m pip install --quiet --disable-pip-version-check --constraint tests/constraints.txt trl==1.16.0 datasets==5.2.0 2>/dev/null ||
    { echo "no peer, no comparison: TRL could not be installed" >&2; exit 0; }
python tests/bench/trl_train.py --only vtools --only "trl packed 1" --only "trl padded 1" --only "trl packed 1 +gc" \
    --only "trl padded 8"
