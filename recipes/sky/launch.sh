#!/usr/bin/env bash
# Train on spot machines what a recipe has planned in RUN_FOLDER; SKY=1 makes recipes/vicuna-7b.sh come here.
#   bash recipes/sky/launch.sh RUN_FOLDER MODEL PRESET WINDOW [OPTION...]     (options of `sky jobs launch`)
# It says what the plan costs, and `sky` asks before it starts anything. The end of the job, hours or days later, is awaited;
# stopped here, it goes on there, and the same command shows it again. In the environment:
#   BUCKET      the bucket for checkpoints and the result (default: vtools-RUN)
#   ON_DEMAND   1: machines that are not taken away
#   OPTIONS     more options of `vtools train`
#   CLOUDS      whose libraries are installed beside `sky` (aws,gcp)
#   VTOOLS      what pip installs there (vtools-chat[train])
#   HF_TOKEN    for a base that asks for one
# `sky` gets an environment of its own in SKY_HOME: it and huggingface_hub want different versions of click.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
RUN=$1 MODEL=$2 PRESET=$3 WINDOW=$4
shift 4
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
job() { # FIELD: of the newest job of this name; nothing where there is none
    sky jobs queue --all --output json | python3 -c '
import json, sys

jobs = [job for job in json.load(sys.stdin) if job["job_name"] == sys.argv[1]]
print(max(jobs, key=lambda job: job["job_id"])[sys.argv[2]] if jobs else "")' "$name" "$1"
}
case $(job status) in
    "" | CANCELLED | FAILED*)
        cp "$here/../data/identity.jsonl" "$RUN/identity.jsonl"
        sky jobs launch -n "$name" ${ON_DEMAND:+--no-use-spot} ${HF_TOKEN:+--secret HF_TOKEN} --env RUN="$RUN" \
            --env MODEL="$MODEL" --env PRESET="$PRESET" --env WINDOW="$WINDOW" --env BUCKET="${BUCKET:-vtools-$name}" \
            --env OPTIONS="${OPTIONS:-}" ${VTOOLS:+--env VTOOLS="$VTOOLS"} "$@" "$here/train.yaml"
        ;;
    SUCCEEDED) ;;
    *) sky jobs logs --name "$name" ;;
esac
echo "After: $(job status), $(job recovery_count) recoveries, $(cost "$(job job_duration)")" >&2
sky cost-report --all >&2 # the controller's machine, which also costs; sky jobs cancel and sky down end what still runs
echo "The model is in the folder tuned of the job's task id, in the bucket ${BUCKET:-vtools-$name}." >&2
