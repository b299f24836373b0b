"""What h200_train.py makes of its measurements: a table, the price of Vicuna, and an entry of RESULTS.md."""

from __future__ import annotations

import datetime
import json
import re
import shlex
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import trl_train

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "RESULTS.md"
UNCOUNTED = {"vtools": 4, "peer": 2}  # first steps
VICUNA = {"conversations": 125_000, "epochs": 3}  # of version 1.5


def report(
    bench: Any,
    section: str,
    contender: str,
    found: dict[str, Any],
    kind: str,
    killed: bool = False,
    planned: dict[str, Any] | None = None,
) -> None:
    """Speed, MFU and memory over the counted steps, or why there are none."""
    steps = found["steps"][UNCOUNTED[kind] :]
    if not steps:
        text = f"{len(found['steps'])} steps, exit {found['exit']}: {found['stderr']}"
        bench.note(section, contender=contender, error=text, card_gb=found["card_gb"])
        return
    name = section.removesuffix("-peers")
    flops = flops_per_token(bench.shape(name), bench.work / name)
    speed = statistics.median(step["tokens"] / step["seconds"] for step in steps)
    ended = "killed" if killed and found["exit"] == -signal.SIGKILL else found["exit"]
    bench.note(
        section,
        contender=contender,
        tokens_per_s=speed,
        mfu=speed * flops / (bench.settings.peak * 1e12),
        own_mfu=statistics.median(step.get("mfu") or 0 for step in steps),
        mem_gb=max(step.get("mem_gb") or 0 for step in found["steps"]),
        planned=planned,
        card_gb=found["card_gb"],
        host_rss_gb=found["tree_mib"] * 2**20 / 1e9,
        step_s=statistics.median(step["seconds"] for step in steps),
        data_ms=statistics.median(step.get("data_ms") or 0 for step in steps),
        first_step_s=found["steps"][0]["seconds"],
        loss=trl_train.mean_loss(found["steps"]),
        counted_steps=len(steps),
        exit=ended,
        after_last_step_s=found["after_last_step_s"],
        said=found["stderr"] if ended not in (0, "killed") else "",
        steps=found["steps"],
    )


def flops_per_token(shape: dict[str, int], folder: Path) -> float:
    """FLOPs of training one real token: matrix products, and causal attention within documents."""
    width, size = shape["width"], shape["width"] // shape["heads"]
    layer = 2 * width * width + 2 * width * size * shape["groups"] + 3 * width * shape["inner"]
    matrices = shape["layers"] * layer + width * shape["vocabulary"]
    lengths = [len(json.loads(text)["input_ids"]) for text in (folder / "tokens.jsonl").open()]
    seen = sum(length * length for length in lengths) / sum(lengths)
    return 6 * matrices + 6 * shape["layers"] * width * seen


def summary(bench: Any) -> None:
    """Ours over each peer in one run, the plan beside the peak, preemptions, dollars."""
    print()
    for name in bench.shapes:
        mine = [one for one in bench.results if one["section"] == name and "tokens_per_s" in one]
        rivals = [one for one in bench.results if one["section"] == f"{name}-peers" and "tokens_per_s" in one]
        for one in sorted(mine, key=lambda one: one["tokens_per_s"]) + rivals:
            bench.say(
                f"{name} {one['contender']:<62} {one['tokens_per_s']:9.0f} tok/s  {100 * one['mfu']:5.1f} % MFU  "
                f"{one['mem_gb']:6.1f} GB, card {one['card_gb']:6.1f} GB, first step {one['first_step_s']:5.1f} s"
            )
            if one.get("planned"):
                foreseen = one["planned"]["memory_gb"]
                parts = ", ".join(
                    f"{key} {size}" for key, size in foreseen.items() if key not in ("total", "available")
                )
                bench.say(
                    f"{name}   planned {foreseen.get('total', 0):.1f} GB ({parts}; micro-batches of "
                    f"{one['planned']['micro_tokens']}, recompute {one['planned']['recompute']}), peak {one['mem_gb']:.1f}"
                )
        if mine and rivals:
            best = max(mine, key=lambda one: one["tokens_per_s"])
            for one in rivals:
                memory = "".join(
                    f", {best[key] / one[key]:.2f} x its {what}"
                    for key, what in (("mem_gb", "allocated memory"), ("card_gb", "memory of the card"))
                    if one[key]
                )
                ratio = best["tokens_per_s"] / one["tokens_per_s"]
                bench.say(f"{name} vtools is {ratio:.2f} x {one['contender']}{memory}")
    for one in bench.results:
        if one["section"] == "preempt" and "bit_equal" in one:
            equal = "bit-equal" if one["bit_equal"] else "NOT EQUAL"
            seconds = one["sigterm_to_exit_s"]
            bench.say(f"preempt {one['preemptions']} times SIGTERM: {equal}; {seconds:.1f} s from each to the exit")
        if one["section"] == "stall" and "extra_s_of_each_save" in one:
            bench.say(
                f"stall {one['extra_s_of_each_save']} s for each checkpoint, SIGTERM {one['sigterm_to_exit_s']} s"
            )
    dollars(bench)
    for one in bench.results:
        if "error" in one or "skipped" in one:
            bench.say(
                f"{one['section']} {one.get('contender') or one.get('part', '')}: {one.get('error') or one['skipped']}"
            )
    print(f"{(time.monotonic() - bench.began) / 60:.1f} minutes; all of it in {bench.settings.out / 'results.jsonl'}")


def dollars(bench: Any) -> None:
    """What Vicuna 1.5 costs at the speed measured on the 7B shape; 13B at its MFU, on as many GPUs as hold it."""
    speeds = [one["tokens_per_s"] for one in bench.results if one["section"] == "7b" and "tokens_per_s" in one]
    if not speeds:
        return
    folder = bench.work / "7b"
    prices = json.loads((ROOT / "recipes" / "data" / "prices.json").read_text())["gpu"]
    price = bench.settings.usd_hour or prices["h200"]
    lengths = [len(json.loads(text)["input_ids"]) for text in (folder / "tokens.jsonl").open()]
    tokens = VICUNA["conversations"] * VICUNA["epochs"] * statistics.mean(lengths)
    for name in ("7b", "13b"):
        share = flops_per_token(bench.shape("7b"), folder) / flops_per_token(bench.shape(name), folder)
        hours = tokens / (max(speeds) * share) / 3600
        how = "measured" if name == "7b" else "at the MFU of the 7B shape, on GPUs that hold it"
        bench.say(
            f"Vicuna-{name.upper()}, {VICUNA['epochs']} epochs of {VICUNA['conversations']:,} conversations "
            f"({tokens / 1e6:.0f} M tokens): {hours:.1f} GPU-hours, ${hours * price:.2f} at ${price:.2f} an hour "
            f"({max(speeds) * share:.0f} tok/s, {how})"
        )


def record(bench: Any) -> None:
    """Add this run to RESULTS.md: the newest entry first, with a line in the table of contents."""
    path = bench.settings.results or (bench.settings.out / "RESULTS.md" if bench.dry else RESULTS)
    about = {key: one for found in bench.results if found["section"] == "about" for key, one in found.items()}
    day = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    where = "a CPU, dry run" if bench.dry else str(about["card"]).split(",")[0]
    heading = (
        f"{day}, `vtools train` beside TRL on one {where}" if not bench.dry else f"{day}, `h200_train.py`, {where}"
    )
    anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
    versions = ", ".join(f"{key} {about[key]}" for key in ("python", "torch", "transformers", "trl", "liger-kernel"))
    hardware = f"{about['card']}, {about['cores']} cores, {about['host_gb']:.0f} GB of host memory"
    command = f"python tests/bench/h200_train.py {shlex.join(sys.argv[1:])}"
    entry = f"## {heading}\n\n{hardware}; {versions}. `{command}`\n\n```\n" + "\n".join(bench.lines) + "\n```\n\n"
    text = (path if path.exists() else RESULTS).read_text()
    first = re.search(r"^## \d", text, re.MULTILINE)
    assert first
    text = text[: first.start()] + entry + text[first.start() :]
    contents = "- [All figures](#all-figures)\n"
    path.write_text(text.replace(contents, f"{contents}- [{heading}](#{anchor})\n", 1))
    print(f"written to {path}")
