#!/usr/bin/env bash
# Vicuna 7B v1.1 again: real shared conversations, LLaMA 7B, the published hyper-parameters.
#   bash recipes/vicuna-7b.sh MODEL SHARED.json [RUN_FOLDER]
#   MODEL        folder or hub id of a 7B base (LLaMA's own license applies)
#   SHARED.json  the ShareGPT dump (people's chats, without a license: it stays where it is)
# Cleaning and splitting: minutes on a laptop. Training: one machine with 8 A100-80G or one H200; the dry run below says
# how many hours and dollars for your data before any are spent (PRICES names a file with what you pay
# for a GPU-hour; data/prices.json is an example of one).
# A run that was stopped goes on when the same command is given again.
set -euo pipefail
MODEL=$1 SHARED=$2 RUN=${3:-runs/vicuna-7b}
WINDOW=${WINDOW:-2048} # tokens of a conversation; LLaMA has no more positions
mkdir -p "$RUN"

[ -e "$RUN/train.jsonl" ] ||
    vtools fetch "$SHARED" --license unknown --rejects "$RUN/torn.jsonl" |
    vtools clean --rejects "$RUN/dropped.jsonl" |
    vtools split --tokenizer "$MODEL" --template vicuna-v1.1 --max-tokens "$WINDOW" --rejects "$RUN/unsplit.jsonl" \
        --hold-out 1% --hold-out-file "$RUN/held.jsonl" -o "$RUN/train.jsonl"

train() { vtools train --model "$MODEL" --data "$RUN/train.jsonl" --eval "$RUN/held.jsonl" --preset vicuna-v1.1 --max-tokens "$WINDOW" "$@"; }
train --dry-run --gpu "${GPU:-a100-80g}" --nproc "${GPUS:-8}" --prices "${PRICES:-$(dirname "$0")/data/prices.json}" > "$RUN/plan.json"
[ -n "${TRAIN:-}" ] || { echo "That was the plan (also in $RUN/plan.json). TRAIN=1 starts it, on the GPUs of this machine." >&2; exit; }

train --out "$RUN/tuned" --rejects "$RUN/untrained.jsonl" --samples 2 --eval-every 200 >> "$RUN/metrics.jsonl"
vtools stats "$RUN/metrics.jsonl" --plot "$RUN/loss.svg"
vtools make-delta "$MODEL" "$RUN/tuned" "$RUN/delta" > "$RUN/delta.jsonl" # what may be published: not LLaMA's weights
