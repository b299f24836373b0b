#!/usr/bin/env bash
# What follows training: the delta of the tuned model, its answers to questions, a judge's verdicts, and the report.
#   bash recipes/evaluate.sh RUN_FOLDER BASE [QUESTIONS [ANSWERS]]     (vicuna.sh and sky/evaluate.yaml end with this)
#   RUN_FOLDER   where the model is, in tuned, and everything goes
#   QUESTIONS    default: our 8
#   ANSWERS      of the model to compare with, such as the blog's of ChatGPT (default, or an empty file: the base answers)
# It costs the judge's tokens: 2 verdicts a question. In the environment: VTOOLS_JUDGE, the model that judges (gpt-4.1), by
# OPENAI_API_KEY or at OPENAI_BASE_URL; SMOKE=1: short answers, which the base judges. Repeat the command to resume.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
RUN=$1 MODEL=$2 QUESTIONS=${3:-$here/data/questions.jsonl} OTHER=${4:-} tokens=1024
[ -z "${SMOKE:-}" ] || tokens=32

# 1. The delta, which may be published; LLaMA's weights may not.
[ -e "$RUN/delta/delta.json" ] || vtools make-delta "$MODEL" "$RUN/tuned" "$RUN/delta" > "$RUN/delta.jsonl"

# 2. Questions to the tuned model, and to the base where there are no other answers: served one after the other.
ask() { # NAME MODEL
    [ ! -e "$RUN/answers-$1.jsonl" ] || return 0
    rm -f "$RUN/serve.jsonl"
    vtools serve "$1=$2" --port 0 > "$RUN/serve.jsonl" &
    local server=$! url
    # shellcheck disable=SC2064 # this server
    trap "kill $server 2> /dev/null || true" EXIT
    until grep -qs '"ready"' "$RUN/serve.jsonl"; do kill -0 $server; sleep 0.5; done
    url=$(python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).readline())["url"])' "$RUN/serve.jsonl")
    vtools chat "$QUESTIONS" --base-url "$url" --model "$1" --temperature 0.7 --max-tokens $tokens -j 8 \
        -o "$RUN/answers-$1.jsonl"
    kill $server && wait $server 2> /dev/null || true
    trap - EXIT
}
if [ -z "$OTHER" ] || { [ -e "$OTHER" ] && [ ! -s "$OTHER" ]; }; then
    ask base "$MODEL"
    OTHER=$RUN/answers-base.jsonl
fi
ask tuned "$RUN/tuned"

# 3. A judge sees both answers in both orders. A verdict that cannot be read makes it exit with 1, though all others are there.
if [ -n "${SMOKE:-}" ]; then
    judge=(--model "$MODEL" --logprobs)
elif [ -n "${OPENAI_API_KEY:-}${OPENAI_BASE_URL:-}" ]; then
    judge=(--model "${VTOOLS_JUDGE:-gpt-4.1}")
else
    echo "$0: the answers are in $RUN; to have them judged, repeat this with OPENAI_API_KEY (or OPENAI_BASE_URL and VTOOLS_JUDGE)" >&2
    exit 2
fi
if [ ! -e "$RUN/report.txt" ]; then
    vtools judge "$OTHER" "$RUN/answers-tuned.jsonl" --questions "$QUESTIONS" "${judge[@]}" -j 4 -o "$RUN/judgments.jsonl" ||
        [ -e "$RUN/judgments.jsonl" ]
    vtools report "$RUN/judgments.jsonl" > "$RUN/report.part"
    {
        echo
        echo "The blog, GPT-4, one order, B is Vicuna 13B: beside ChatGPT A 693.0, B 638.0 (92.06 %), B as good or better 36/80 (45.0 %);"
        echo "beside LLaMA 13B A 513.0, B 694.0, B better 77/80."
        [ -z "${SMOKE:-}" ] || echo "This run: a small model judges itself, A CHECK OF THE COMMANDS; ITS VERDICTS MEAN NOTHING."
    } >> "$RUN/report.part"
    mv "$RUN/report.part" "$RUN/report.txt"
fi
cat "$RUN/report.txt"
