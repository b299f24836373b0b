#!/usr/bin/env bash
# Train adapters of LLaMA 7B on one GPU of 24 GB (RTX 3090 or 4090, L4, A10G), on the same conversations as Vicuna 7B.
#   bash recipes/lora-one-gpu.sh [MODEL [SHARED [RUN_FOLDER]]]
# The frozen weights take 13.5 GB. It stops after a plan, which says whether it fits and how long it takes; TRAIN=1 goes on.
# RUN_FOLDER/tuned has the merged model, and in adapter/ the adapters alone. Everything else is as in vicuna-7b.sh.
SIZE=7b LORA=${LORA:-16} GPU=${GPU:-rtx 4090} GPUS=1 exec bash "$(dirname "$0")/vicuna.sh" "$@"
