#!/usr/bin/env bash
# Reproduce Vicuna 7B v1.1: real shared conversations, LLaMA 7B, the published hyper-parameters.
#   bash recipes/vicuna-7b.sh MODEL SHARED.json [RUN_FOLDER]
#   MODEL        folder or hub id of a 7B base (LLaMA's own license applies)
#   SHARED.json  the ShareGPT dump (people's chats, without a license: it stays where it is)
# Cleaning and splitting take minutes on a laptop. Then a dry run predicts the hours and dollars of training on your data, on
# 8 A100-80G (or GPU and GPUS; PRICES is a file of dollars per GPU-hour, recipes/data/prices.json unless given), and stops.
# With TRAIN=1 the training itself follows, on the GPUs of this machine: 8 A100-80G or one H200 suffice.
# To resume a stopped run, repeat the command.
set -euo pipefail
MODEL=$1 SHARED=$2 RUN=${3:-runs/vicuna-7b}
WINDOW=${WINDOW:-2048} # tokens per conversation; LLaMA has no more positions
mkdir -p "$RUN"

[ -e "$RUN/train.jsonl" ] ||
    vtools fetch "$SHARED" --license unknown --rejects "$RUN/torn.jsonl" |
    vtools clean --rejects "$RUN/dropped.jsonl" |
    vtools split --tokenizer "$MODEL" --template vicuna-v1.1 --max-tokens "$WINDOW" --rejects "$RUN/unsplit.jsonl" \
        --hold-out 1% --hold-out-file "$RUN/held.jsonl" -o "$RUN/train.jsonl"

train() { vtools train "$RUN/train.jsonl" --model "$MODEL" --eval "$RUN/held.jsonl" --preset vicuna-v1.1 --max-tokens "$WINDOW" "$@"; }
train --dry-run --gpu "${GPU:-a100-80g}" --nproc "${GPUS:-8}" --prices "${PRICES:-$(dirname "$0")/data/prices.json}" > "$RUN/plan.json"
[ -n "${TRAIN:-}" ] || { echo "That was the plan (also in $RUN/plan.json). Set TRAIN=1 to start training on the GPUs of this machine." >&2; exit; }

train --out "$RUN/tuned" --rejects "$RUN/untrained.jsonl" --samples 2 --eval-every 200 >> "$RUN/metrics.jsonl"
vtools stats "$RUN/metrics.jsonl" --plot "$RUN/loss.svg"
vtools make-delta "$MODEL" "$RUN/tuned" "$RUN/delta" > "$RUN/delta.jsonl" # this may be published, LLaMA's weights may not
