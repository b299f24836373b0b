#!/usr/bin/env bash
# A fleet on this machine, for others to join: two edges side by side, and WORKERS local workers of MODEL behind both.
#   bash recipes/serve-fleet.sh
#   vtools chat --base-url http://127.0.0.1:8001,http://127.0.0.1:8002 --model chat
# If one edge dies, the client goes on through the other; if a worker dies, another goes on with its answers.
#
# For machines elsewhere, HOST is the address of this one (with CERT and KEY, PEM files, for TLS), and clients need keys:
#   export VTOOLS_JOIN_TOKEN=$(openssl rand -hex 32) VTOOLS_KEYS_FILE=keys.jsonl
#   vtools serve --new-key ana                                       # prints ana's key once; SIGHUP has edges read the file again
#   HOST=edge.example NETWORK=10.0.0.0/8 CERT=cert.pem KEY=key.pem bash recipes/serve-fleet.sh
# A worker on-premise (NETWORK is where the edges take private addresses from):
#   vtools serve chat=MODEL --join https://edge.example:8001,https://edge.example:8002 --host 0.0.0.0
# Workers in the cloud, on spot machines: recipes/sky/serve-workers.yaml. New weights, without an answer lost:
#   vtools serve --swap chat=NEW https://edge.example:8001,https://edge.example:8002 --host 0.0.0.0
# Who is there, and who is refused and why:
#   vtools serve --status https://edge.example:8001
set -euo pipefail
MODEL=${MODEL:-hf:HuggingFaceTB/SmolLM2-135M-Instruct}
NAME=${NAME:-chat}
WORKERS=${WORKERS:-2}
HOST=${HOST:-127.0.0.1}
PORTS=${PORTS:-8001 8002}
NETWORK=${NETWORK:-}
CERT=${CERT:-}
KEY=${KEY:-}

scheme=http
options=()
[ -z "$NETWORK" ] || options+=(--allow-net "$NETWORK")
[ -z "$CERT" ] || { scheme=https; options+=(--tls-cert "$CERT" --tls-key "$KEY"); }
joined=
for port in $PORTS; do
  vtools serve --host "$HOST" --port "$port" "${options[@]}" &
  joined=${joined:+$joined,}$scheme://$HOST:$port
done
tls=()
[ -z "$CERT" ] || tls=(--tls-cert "$CERT" --tls-key "$KEY")
vtools serve "$NAME=$MODEL" --join "$joined" --workers "$WORKERS" --host "$HOST" "${tls[@]}" &
trap 'trap - TERM INT; kill $(jobs -p) 2> /dev/null; wait' TERM INT
wait
