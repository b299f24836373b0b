#!/usr/bin/env bash
# Train Llama 3.1 8B, a newer open base, as Vicuna v1.5 was trained: the same data and hyper-parameters, 8192 tokens.
#   bash recipes/llama-3-8b.sh [MODEL [SHARED [RUN_FOLDER]]]
# Its weights need a token of the hub (HF_TOKEN) and Meta's license. Everything else is as in vicuna-7b.sh; EXPECT= allows any
# other base of which `vtools train` can read the configuration.
SIZE=8b VERSION=llama-3 exec bash "$(dirname "$0")/vicuna.sh" "$@"
