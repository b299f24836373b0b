#!/usr/bin/env bash
# Rebuild the published Vicuna 7B from LLaMA 7B and lmsys's delta, then write one quantised file for llama.cpp and gpt4all.
#   bash recipes/published-vicuna.sh [BASE] [DELTA] [FOLDER]
# Needs 45 GB of disk (13.5 each for base, delta and result, 4 for the file; with llama-quantize installed, 13.5 more
# temporarily) and less than 1 GB of memory; no GPU.
# Takes a few minutes after the download (27 GB). LLaMA's own license applies to the result.
# The first Vicuna, 13B, is twice as large:
#   TEMPLATE=vicuna-v0 ROWS="--extra-rows zero" bash recipes/published-vicuna.sh \
#     hf:huggyllama/llama-13b hf:lmsys/vicuna-13b-delta-v0 vicuna-13b-v0
# To resume a stopped run, repeat the command.
set -euo pipefail
BASE=${1:-hf:huggyllama/llama-7b} DELTA=${2:-hf:lmsys/vicuna-7b-delta-v1.1} OUT=${3:-vicuna-7b}
TEMPLATE=${TEMPLATE:-vicuna-v1.1} TYPE=${TYPE:-q4_k_m}

# K-quants are computed by llama.cpp: by its program if installed, else by the library of the extra llama-cpp.
[[ $TYPE != *_k* ]] || command -v llama-quantize > /dev/null || python -m pip install --quiet 'xllamacpp>=2026.10,<2027'

# The delta has no delta.json: it is added in its own dtype, with the same bits as FastChat.
# shellcheck disable=SC2086  # ROWS is an option with its value
[ -d "$OUT" ] || vtools apply-delta "$BASE" "$DELTA" "$OUT" --template "$TEMPLATE" ${ROWS:-} > "$OUT.tensors.jsonl"
[ -e "$OUT.gguf" ] || vtools export "$OUT" --to gguf --type "$TYPE" -o "$OUT.gguf" > "$OUT.gguf.jsonl"
echo "Talk to it: vtools serve $OUT & vtools chat --base-url http://127.0.0.1:8000/v1, or llama.cpp with $OUT.gguf"
