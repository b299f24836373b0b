#!/usr/bin/env bash
# Train on spot machines what a recipe has planned in RUN_FOLDER; SKY=1 makes recipes/vicuna-7b.sh come here.
#   bash recipes/sky/launch.sh RUN_FOLDER MODEL PRESET WINDOW QUESTIONS ANSWERS [OPTION...]     (options of `sky jobs launch`)
# It says what the plan costs, and `sky` asks before it starts anything. The end of the job, hours or days later, is awaited;
# stopped here, it goes on there, and the same command shows it again. Then, where OPENAI_API_KEY is set, a smaller job asks
# the model QUESTIONS and has its answers judged beside ANSWERS (evaluate.yaml; empty: the base's). In the environment:
#   BUCKET      the bucket for checkpoints and the result (default: vtools-RUN)
#   ON_DEMAND   1: machines that are not taken away
#   OPTIONS     more options of `vtools train`
#   CLOUDS      whose libraries are installed beside `sky` (aws,gcp)
#   VTOOLS      what pip installs there (vtools-chat, with the extras of the job)
#   HF_TOKEN    for a base that asks for one
# `sky` gets an environment of its own in SKY_HOME: it and huggingface_hub want different versions of click.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
RUN=$1 MODEL=$2 PRESET=$3 WINDOW=$4 QUESTIONS=$5 ANSWERS=$6
shift 6
name=$(basename "$RUN" | tr . -)
GPU=${GPU:-a100-80g} GPUS=${GPUS:-8} PRICES=${PRICES:-$here/../data/prices.json} SKY_HOME=${SKY_HOME:-$HOME/.cache/vtools/sky}
kind=-spot
[ -z "${ON_DEMAND:-}" ] || kind=

cost() { # SECONDS: hours and dollars at the price of the file
    python3 - "$1" "$PRICES" "$GPU$kind" "$GPUS" <<'PY'
import json, sys

seconds, prices, gpu, number = float(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
price = json.load(open(prices))["gpu"].get(gpu)
dollars = f"${seconds / 3600 * number * price:,.2f}" if price is not None else f"dollars unknown: no {gpu}"
print(f"{seconds / 3600:.1f} hours of {number} x {gpu}, {dollars} (prices: {prices})")
PY
}
echo "Before: about $(cost "$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["seconds"])' "$RUN/plan.json")")" >&2

[ -x "$SKY_HOME/bin/sky" ] || {
    python3 -m venv "$SKY_HOME"
    "$SKY_HOME/bin/pip" install --quiet "skypilot[${CLOUDS:-aws,gcp}]>=0.14.1,<0.15"
}
sky() { "$SKY_HOME/bin/sky" "$@"; }
job() { # NAME: status, recoveries and seconds of the newest job of this name; nothing where there is none
    local jobs
    jobs=$(sky jobs queue --all --output json 2> "$RUN/sky.log") || {
        grep -q "No in-progress managed jobs" "$RUN/sky.log" || { cat "$RUN/sky.log" >&2; return 1; } # it has no queue before the first job
        jobs=[]
    }
    python3 -c '
import json, sys

jobs = [job for job in json.load(sys.stdin) if job["job_name"] == sys.argv[1]]
newest = max(jobs, key=lambda job: job["job_id"], default=None)
print(*(newest[field] for field in ("status", "recovery_count", "job_duration")) if newest else ())' "$1" <<< "$jobs"
}
BUCKET=${BUCKET:-vtools-$name}
ended() { # NAME FILE [OPTION...]: launched unless it was, and awaited; sets status, recoveries, seconds
    local now
    now=$(job "$1")
    case $now in
        "" | CANCELLED* | FAILED*)
            sky jobs launch -n "$1" ${ON_DEMAND:+--no-use-spot} ${HF_TOKEN:+--secret HF_TOKEN} --env RUN="$RUN" \
                --env MODEL="$MODEL" --env BUCKET="$BUCKET" ${VTOOLS:+--env VTOOLS="$VTOOLS"} "${@:3}" "$here/$2" || true # `sky` has said why
            ;;
        SUCCEEDED*) ;;
        *) sky jobs logs --name "$1" || true ;;
    esac
    [[ $now = SUCCEEDED* ]] || now=$(job "$1")
    read -r status recoveries seconds <<< "$now"
}
succeeded() { # NAME: the job that `ended` has awaited
    [ "$status" = SUCCEEDED ] || { echo "$0: the job $1 did not succeed; repeat the command to go on with it" >&2; exit 1; }
}
cp "$here/../data/identity.jsonl" "$RUN/identity.jsonl"
ended "$name" train.yaml --env PRESET="$PRESET" --env WINDOW="$WINDOW" --env OPTIONS="${OPTIONS:-}" "$@"
[ -z "$status" ] || echo "After: $status, $recoveries recoveries, $(cost "$seconds")" >&2
succeeded "$name"
echo "The model is in $(basename "$RUN")/tuned of the bucket $BUCKET." >&2
if [ -n "${OPENAI_API_KEY:-}" ]; then
    cp "$QUESTIONS" "$RUN/questions.jsonl"
    cp "${ANSWERS:-/dev/null}" "$RUN/others.jsonl"
    ended "$name-evaluate" evaluate.yaml --secret OPENAI_API_KEY ${VTOOLS_JUDGE:+--env VTOOLS_JUDGE="$VTOOLS_JUDGE"} "$@"
    succeeded "$name-evaluate"
    sky jobs logs --name "$name-evaluate" >&2 # the report is at its end
else
    echo "With OPENAI_API_KEY the same command has its answers judged." >&2
fi
sky cost-report --all >&2 # the controller's machine, which also costs; sky jobs cancel and sky down end what still runs
