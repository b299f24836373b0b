#!/usr/bin/env bash
# Reproduce Vicuna 7B v1.5 16k: conversations of up to 16,384 tokens on Llama 2, whose positions (RoPE) are scaled by 4.
#   bash recipes/vicuna-16k.sh [MODEL [SHARED [RUN_FOLDER]]]
# SIZE=13b trains the larger one. Everything else is as in vicuna-7b.sh.
SIZE=${SIZE:-7b} VERSION=v1.5 WINDOW=16384 exec bash "$(dirname "$0")/vicuna.sh" "$@"
