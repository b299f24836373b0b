#!/usr/bin/env bash
# Clean a corpus that is too large for one machine, shard by shard, with the result of one `vtools clean` over all of it,
# byte for byte: duplicates in other shards are found, too.
#   bash recipes/scale-out.sh FOLDER SHARD.jsonl...      (what `vtools fetch` wrote; the order of the shards counts)
#   cat FOLDER/done/*.jsonl | vtools split ...
# A pass cleans each shard and writes a key per conversation; DuckDB finds the keys that came before. With NEAR=0.8 a second
# pass writes MinHash bands, from which DuckDB finds near-duplicates. The last pass drops both. A shard takes the memory of one
# conversation and of its decisions; DuckDB takes disk where memory is short. Repeat the command to resume.
#   JOBS    shards at a time here (default: 2)
#   HOSTS   machines that see the same folder at the same path: GNU parallel runs a shard per processor of each (ssh)
#   CLEAN   more options of `vtools clean`, such as --drop-refusals
# On SkyPilot's machines: recipes/sky/data.yaml, a job per shard and pass. Needs the extras filters and scale-out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tool() { python3 "$here/scale_out.py" "$@"; }
written() { "${@:2}" > "$1.part" && mv "$1.part" "$1"; } # FILE COMMAND...: whole or not at all

if [ "$1" = part ]; then # part PASS FOLDER [NUMBER SHARD]: one shard of a pass, or a decision about all of them
    folder=$3 number=${4:-} shard=$3/clean/${4:-}.jsonl
    mkdir -p "$folder"/{clean,keys,bands,digests,rejects,done}
    case $2 in
        clean)
            # shellcheck disable=SC2086  # options
            [ -e "$shard" ] || vtools clean "$5" --keep dup_exact ${CLEAN:-} -q --rejects "$folder/rejects/$number.jsonl" -o "$shard"
            [ -e "$folder/keys/$number.csv" ] || written "$folder/keys/$number.csv" tool keys "$number" "$shard"
            ;;
        exact) [ -e "$folder/exact/decided" ] || tool exact "$folder" ;;
        sketch)
            [ -e "$folder/bands/$number.csv" ] ||
                written "$folder/bands/$number.csv" tool sketches "$number" "$shard" "$folder" "$NEAR"
            ;;
        near) [ -e "$folder/near/decided" ] || tool near "$folder" "$NEAR" ;;
        keep) [ -e "$folder/done/$number.jsonl" ] || written "$folder/done/$number.jsonl" tool keep "$number" "$shard" "$folder" ;;
        *) echo "$0: $2: no such pass" >&2 && exit 2 ;;
    esac
    exit
fi

FOLDER=$1
shift
export NEAR=${NEAR:-} CLEAN=${CLEAN:-}
pass() { # PASS: over all shards
    local place=0 shard
    for shard in "${shards[@]}"; do
        printf '%s\0%s\0%05d\0%s\0' "$1" "$FOLDER" $place "$shard"
        place=$((place + 1))
    done |
        if [ -n "${HOSTS:-}" ]; then
            parallel -0 -N 4 -S "$HOSTS" --wd "$PWD" --env NEAR --env CLEAN --env PATH bash "$here/scale-out.sh" part
        else
            xargs -0 -n 4 -P "${JOBS:-2}" bash "$here/scale-out.sh" part
        fi
}
shards=("$@")
pass clean
bash "$0" part exact "$FOLDER"
if [ -n "$NEAR" ]; then
    pass sketch
    bash "$0" part near "$FOLDER"
fi
pass keep
