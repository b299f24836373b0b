"""How long OpenMP's threads spin while they wait: python tests/bench/spinning.py [--rounds 3] [--counts 1000 ...]

Steps of training a second on this machine's CPU, idle and beside one and two busy neighbours (processes that do nothing
but count), for each setting: `unset` is libgomp's own (300,000 turns), `PASSIVE` never spins, `ours` is what vtools sets
(vtools.machine.SPINS), and --counts are further ones. Two models: `small` is the tests' tiny one, whose steps are many
small operations, and `smollm2` has the shape of SmolLM2-135M. Each setting is a process of its own, in turn; of all rounds
the fastest counts that no other program disturbed. The last loss is shown: it must be the same.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import trl_train  # noqa: E402

from vtools import machine  # noqa: E402

SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 300,
    },
    "smollm2": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152,
    },
}  # fmt: skip
ROWS = {"small": [64] * 32, "smollm2": [32] * 4}  # tokens of the conversations of a step
NEIGHBOURS = (0, 1, 2)
QUIET = 0.1  # cores that strangers may use in a measurement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement, at least two steps")
    parser.add_argument("--tries", type=int, default=8, help="how often a moment without strangers is waited for")
    parser.add_argument("--counts", type=int, nargs="*", default=[], help="further values of GOMP_SPINCOUNT")
    parser.add_argument("--models", nargs="*", choices=SHAPES, default=list(SHAPES))
    settings = parser.parse_args()
    known = {"unset": {}, "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}, "ours": {"GOMP_SPINCOUNT": machine.SPINS}}
    known |= {str(count): {"GOMP_SPINCOUNT": str(count)} for count in settings.counts}
    plain = {name: value for name, value in os.environ.items() if name not in machine.WAITING}
    best: dict[tuple[str, str, int], tuple[float, float]] = {}
    losses: dict[str, set[float]] = {}
    for _ in range(settings.rounds):
        for name, chosen in known.items():
            command = [
                sys.executable,
                __file__,
                "_child",
                json.dumps([settings.models, settings.seconds, settings.tries]),
            ]
            done = subprocess.run(command, env=plain | chosen, capture_output=True, text=True, check=True)
            for model, neighbours, strangers, speed, loss in map(json.loads, done.stdout.splitlines()):
                before = best.get((name, model, neighbours), (math.inf, 0.0))
                # Among quiet measurements the fastest counts, among others the quietest.
                best[name, model, neighbours] = min(
                    before, (max(strangers, QUIET), speed), key=lambda one: (one[0], -one[1])
                )
                losses.setdefault(model, set()).add(loss)
    for model in settings.models:
        idle = best["unset", model, 0][1]
        print(f"{model}: steps per second, and against `unset` idle ({idle:.2f}); losses {sorted(losses[model])}")
        for name in known:
            speeds = [best[name, model, neighbours][1] for neighbours in NEIGHBOURS]
            shown = "  ".join(
                f"{count} busy {one:7.2f} ({one / idle:4.0%})" for count, one in zip(NEIGHBOURS, speeds, strict=True)
            )
            print(f"  {name:<8} {shown}  beside one: {speeds[1] / speeds[0]:.0%} of its own idle speed")


def child(models: list[str], seconds: float, tries: int) -> None:
    """Steps per second of each model beside each number of neighbours."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from vtools.train import attention, loss, pack

    for name in models:
        torch.manual_seed(0)
        config = LlamaConfig(**SHAPES[name], tie_word_embeddings=True)
        model: Any = LlamaForCausalLM._from_config(config, attn_implementation=attention.NAME)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        rows = [(list(range(length)), bytes([0] + [1] * (length - 1))) for length in ROWS[name]]
        packed = pack.pack(rows, torch.device("cpu"))

        def step(model: Any = model, optimizer: Any = optimizer, packed: Any = packed) -> float:
            found = loss.summed_loss(model, packed, 1e-3)
            found.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return found.item()

        for _ in range(3):
            last = step()
        for neighbours in NEIGHBOURS:
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
            time.sleep(0.3 * bool(busy))
            found = []
            for _ in range(tries):
                began, used, own, steps = (
                    time.monotonic(),
                    used_by_all(),
                    used_by(os.getpid(), *(one.pid for one in busy)),
                    0,
                )
                while steps < 2 or time.monotonic() - began < seconds:
                    step()
                    steps += 1
                took = time.monotonic() - began
                strangers = used_by_all() - used - (used_by(os.getpid(), *(one.pid for one in busy)) - own)
                found.append((strangers / took, steps / took))
                if strangers / took < QUIET:
                    break
            print(json.dumps([name, neighbours, *min(found), last]), flush=True)
            for one in busy:
                one.kill()
                one.wait()


def used_by_all() -> float:
    """CPU seconds of everything on this machine so far."""
    user, nice, system, _, _, hard, soft, *_ = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")


def used_by(*processes: int) -> float:
    return sum(map(trl_train.cpu_seconds, processes))


if __name__ == "__main__":
    child(*json.loads(sys.argv[2])) if sys.argv[1:2] == ["_child"] else main()
