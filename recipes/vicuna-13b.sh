#!/usr/bin/env bash
# Reproduce Vicuna 13B, the model of the blog: vicuna-7b.sh with LLaMA 13B (40 layers, 40 heads, width 5120).
#   bash recipes/vicuna-13b.sh [MODEL [SHARED [RUN_FOLDER]]]
# Twice the time and money of 7B: recipes/cost.md. Needs 8 A100-80G, and 26 GB of disk for the weights, 160 for a checkpoint.
SIZE=13b exec bash "$(dirname "$0")/vicuna.sh" "$@"
