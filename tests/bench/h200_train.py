"""`vtools train` on one GPU, beside TRL and the HF Trainer: python tests/bench/h200_train.py --out DIR [--dry-run]

Under ten minutes on one H200 (about 35 GB of local disk under --work). Nothing is downloaded: models of the shapes of
TinyLlama-1.1B and Llama-2-7B get random weights, conversations are random words whose token counts follow real
ShareGPT (lengths.json). Sections, in this order; --only and --skip choose, and what no longer fits into --minutes is
left out and said so:

  attention   document attention forward and backward, grouped queries too, against SDPA one document at a time
  1b          vtools train on the 1.1B shape: real tokens/s, MFU, memory
  stall       the same with --save-every 8: ckpt_ms and the steps around it; then SIGTERM: seconds to exit 75
  7b          vtools train on the 7B shape
  1b-peers, 7b-peers   TRL packed, TRL padded, HF Trainer padded (and TRL packed with liger, where it is installed)
  preempt     a small shape: SIGTERM ten times, the same command each time; the weights must be those of a run in one go

What the plan said about memory stands beside the measured peak, and what Vicuna-7B and 13B would cost at the measured
speed at the end. All of it becomes an entry of RESULTS.md (--results; a dry run writes DIR/RESULTS.md). A section that
fails says so, and the others go on; the exit status is 1 then. What did not fit into --minutes is had by --only.

A first look at a new GPU is --sweep: the 1.1B shape alone, with each --recompute, --compile or not, and micro-batches
of 8,192 and 16,384 tokens; the fastest is the last of its table. Token cache and compiled kernels begin
empty and are shared by the runs that follow: first_step_s (from the start of the process to the end of the first step)
is cold in the first run of a kind, and warm after.

Every trainer is a process of its own over the same token ids, in bf16 with fp32 master weights and AdamW. A step's
time is the time between the lines that it prints, by this process's clock; the first steps do not count; padding is no
token. MFU is worked out here, from 6 x matrix parameters + 6 x layers x width x sum(n^2)/sum(n) per token (causal,
per document, no embedding) over --peak, for all alike; vtools' own figure stands beside it. Peak memory is the
trainer's own (mem_gb) and the highest that nvidia-smi showed for the card. --dry-run goes through all of it on a CPU
with two-layer models, and through the GPU's attention path with meta tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from typing import Any

import h200_results
import trl_train
from random_llama import MAX_TOKENS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VOCABULARY = 32000
Shape = dict[str, int]
SHAPES: dict[str, Shape] = {
    "1b": {"width": 2048, "inner": 5632, "layers": 22, "heads": 32, "groups": 4, "vocabulary": VOCABULARY},
    "7b": {"width": 4096, "inner": 11008, "layers": 32, "heads": 32, "groups": 32, "vocabulary": VOCABULARY},
    "13b": {"width": 5120, "inner": 13824, "layers": 40, "heads": 40, "groups": 40, "vocabulary": VOCABULARY},
    "small": {"width": 1024, "inner": 2816, "layers": 4, "heads": 16, "groups": 4, "vocabulary": VOCABULARY},
}
PREEMPTIONS = 10
TINY: Shape = {"width": 64, "inner": 128, "layers": 2, "heads": 4, "groups": 2, "vocabulary": 512}
STALL_BATCH = 64
BATCH = {"1b": 32, "7b": 16, "small": 8}  # conversations a step, about 1,130 tokens each
STEPS = {"vtools": 12, "peer": 5}
# Settings that are tried in turn until one fits: rows at a time, gradient checkpointing.
PEER_SETTINGS = {
    ("1b", "packed"): [(2, False), (1, False), (1, True)],
    ("1b", "padded"): [(8, False), (4, False), (4, True)],
    ("7b", "packed"): [(2, True), (1, True)],
    ("7b", "padded"): [(4, True), (1, True)],
}
# In the order of what is learned soonest; --sweep leaves out the last ones when time is up.
SWEEP = [
    f"--{compiled} --recompute {recompute} --micro-tokens {size}"
    for compiled in ("compile", "no-compile")
    for size in (8192, 16384)
    for recompute in ("none", "selective", "full")
]
PEERS = ["trl packed", "trl padded", "hf padded", "trl packed liger"]
# Seconds that each part is expected to take on the H200: whether it is still begun.
EXPECTED = {"attention": 30, "1b": 90, "stall": 80, "7b": 135, "1b-peers": 45, "7b-peers": 70, "preempt": 240}
EXPECTED_OF_SWEEP = 60  # one run


class Bench:
    """What all sections share: settings, the clock, and where results go."""

    def __init__(self, settings: argparse.Namespace, work: Path) -> None:
        self.settings, self.work = settings, work
        self.dry: bool = settings.dry_run
        self.began = time.monotonic()
        self.results: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            "VTOOLS_CACHE": str(work / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(work / "kernels"),
        }
        if self.dry:
            self.environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    @property
    def left_s(self) -> float:
        return self.settings.minutes * 60 - (time.monotonic() - self.began)

    shapes = SHAPES

    def shape(self, name: str) -> Shape:
        return TINY if self.dry else SHAPES[name]

    @property
    def max_tokens(self) -> int:
        return 128 if self.dry else MAX_TOKENS

    def batch(self, name: str) -> int:
        return self.settings.batch or (4 if self.dry else BATCH[name])

    def say(self, line: str) -> None:
        """Print a line of the summary, and keep it for RESULTS.md."""
        self.lines.append(line)
        print(line, flush=True)

    def note(self, section: str, **found: Any) -> None:
        """Print a result as it comes, and append it to DIR/results.jsonl."""
        found = {"section": section, **found, "at_s": round(time.monotonic() - self.began, 1)}
        self.results.append(found)
        with (self.settings.out / "results.jsonl").open("a") as log:
            log.write(json.dumps(found) + "\n")
        shown = {key: round(one, 4) if isinstance(one, float) else one for key, one in found.items() if key != "steps"}
        print(" ".join(f"{key}={one}" for key, one in shown.items()), flush=True)

    @contextmanager
    def guarded(self, section: str, part: str = "") -> Iterator[None]:
        """An error ends this part alone."""
        try:
            yield
        except Exception as error:
            self.note(section, part=part, error=f"{type(error).__name__}: {error}"[:600])

    def fits(self, section: str, part: str = "", seconds: float | None = None) -> bool:
        seconds = seconds or EXPECTED[section]
        if self.dry or self.left_s >= seconds:
            return True
        self.note(section, part=part, skipped=f"{self.left_s:.0f} s are left and it takes about {seconds:.0f} s")
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl")
    parser.add_argument(
        "--work", type=Path, help="folder for models and runs; emptied after (default: a temporary one)"
    )
    parser.add_argument("--dry-run", action="store_true", help="every section with tiny models on the CPU")
    parser.add_argument("--only", action="append", choices=list(EXPECTED), help="these sections")
    parser.add_argument("--skip", action="append", choices=list(EXPECTED), default=[], help="not these sections")
    parser.add_argument("--minutes", type=float, default=9.2, help="begin nothing that would not end by then")
    parser.add_argument("--all-settings", action="store_true", help="every setting of a peer, not the first that fits")
    parser.add_argument("--batch", type=int, help="conversations a step (default: 32 for 1b, 16 for 7b)")
    parser.add_argument("--results", type=Path, help="where to add an entry (default: RESULTS.md beside this script)")
    parser.add_argument(
        "--usd-hour", type=float, help="price of the GPU (default: of h200 in recipes/data/prices.json)"
    )
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s that are 100 %% MFU (dense bf16)")
    parser.add_argument(
        "--vtools",
        action="append",
        metavar="OPTIONS",
        help="further options of vtools train, as one text; each --vtools is a run of its own ('' is the default run)",
    )
    parser.add_argument(
        "--sweep", action="store_true", help="only the 1.1B shape: each --recompute, --compile and --micro-tokens"
    )
    settings = parser.parse_args()
    if settings.sweep:
        if settings.only or settings.vtools:
            parser.error("--sweep chooses sections and options itself")
        # On a CPU one compiled run shows enough, and takes a minute.
        settings.only, settings.vtools = ["1b"], SWEEP[:1] + SWEEP[6:9] if settings.dry_run else SWEEP
    settings.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the work folder goes
    sections: dict[str, Callable[[Bench], None]] = {
        "attention": attention,
        "1b": lambda bench: ours(bench, "1b"),
        "stall": stall,
        "7b": lambda bench: ours(bench, "7b"),
        "1b-peers": lambda bench: peers(bench, "1b"),
        "7b-peers": lambda bench: peers(bench, "7b"),
        "preempt": preempt,
    }
    with tempfile.TemporaryDirectory(prefix="vtools-bench-", dir=settings.work) as name:
        bench = Bench(settings, Path(name))
        about(bench)
        for section, run in sections.items():
            if section not in settings.skip and (not settings.only or section in settings.only):
                with bench.guarded(section):
                    run(bench)
        with bench.guarded("summary"):
            h200_results.summary(bench)
        h200_results.record(bench)
    if any("error" in one for one in bench.results):
        sys.exit(1)


def about(bench: Bench) -> None:
    names = ("torch", "transformers", "trl", "datasets", "accelerate", "liger-kernel", "flash-attn")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    card = nvidia("name,memory.total,power.limit,driver_version")
    free = shutil.disk_usage(bench.work).free / 1e9
    bench.note("about", python=platform.python_version(), **versions)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    bench.note("about", card=card or "none", cores=len(os.sched_getaffinity(0)), host_gb=memory, disk_free_gb=free)
    if not card and not bench.dry:
        sys.exit("there is no NVIDIA GPU here: --dry-run goes through everything on the CPU")


def nvidia(fields: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


# The sections


def attention(bench: Bench) -> None:
    if not bench.fits("attention"):
        return
    command = [sys.executable, str(HERE / "h200_attention.py"), json.dumps({"dry": bench.dry, "seed": 0})]
    done = subprocess.run(command, env=bench.environment, capture_output=True, text=True, timeout=180)
    for text in done.stdout.splitlines():
        bench.note("attention", **json.loads(text))
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-500:]}")


def ours(bench: Bench, name: str) -> None:
    if not bench.fits(name):
        return
    folder = made(bench, name)
    several = bench.settings.vtools or [""]
    planned: dict[str, dict[str, Any]] = {}
    short = name == "7b" or bench.settings.sweep  # 13.5 GB need not be exported to know the speed
    for number, options in enumerate(several):
        if number and not bench.fits(name, options, EXPECTED_OF_SWEEP if bench.settings.sweep else None):
            continue
        with bench.guarded(name, f"vtools {options}".strip()):
            last = STEPS["vtools"]

            def enough(step: dict[str, Any], child: subprocess.Popen[str], last: int = last) -> None:
                if short and step["step"] >= last:
                    trl_train.end(child)

            more = ["--max-steps", str(last), *shlex.split(options)]
            with bench.guarded(name, "plan"):
                planned[options] = plan(bench, folder, name, more)
            found = vtools_train(bench, folder, name, more, enough)
            h200_results.report(bench, name, f"vtools {options}".strip(), found, "vtools", short, planned.get(options))


def stall(bench: Bench) -> None:
    """A run that saves every 8 steps: what a save costs; after step 20 SIGTERM, and the seconds to exit 75."""
    if not bench.fits("stall"):
        return
    folder = made(bench, "1b")
    asked = [0.0]

    def ask(step: dict[str, Any], child: subprocess.Popen[str]) -> None:
        if step["step"] == 20:
            asked[0] = time.monotonic()
            child.send_signal(signal.SIGTERM)

    options = ["--max-steps", "100", "--save-every", "8", "--keep", "1"]
    found = vtools_train(bench, folder, "1b", options, ask, batch=None if bench.dry else STALL_BATCH)
    steps = found["steps"]
    # Before the first save nothing is written; what the steps after a save take longer than these is its price,
    # wherever in the loop it is paid.
    plain = [step["seconds"] / step["tokens"] for step in steps if h200_results.UNCOUNTED["vtools"] < step["step"] < 8]
    rate = statistics.median(plain) if plain else float("nan")
    price = {
        save: sum(step["seconds"] - step["tokens"] * rate for step in steps if save <= step["step"] < save + 8)
        for save in (8, 16)
    }
    bench.note(
        "stall",
        contender="vtools",
        extra_s_of_each_save=[round(one, 3) for one in price.values()],
        ckpt_ms=[step.get("ckpt_ms") for step in steps],
        step_ms=[round(step["seconds"] * 1000) for step in steps],
        sigterm_to_exit_s=found["wall_s"] - (asked[0] - found["began"]) if asked[0] else None,
        exit=found["exit"],
        said=found["stderr"],
        host_rss_gb=found["tree_mib"] * 2**20 / 1e9,
    )


def preempt(bench: Bench) -> None:
    """Ten times SIGTERM, then the same command again: losses and weights must be those of a run in one go."""
    if not bench.fits("preempt"):
        return
    folder, steps = made(bench, "small"), 2 * PREEMPTIONS + 2
    options = ["--max-steps", str(steps), "--save-dtype", "fp32", "--save-every", "1h"]
    whole, out = bench.work / "whole", bench.work / "preempted"
    expected = vtools_train(bench, folder, "small", options, out=whole)
    if expected["exit"]:
        raise RuntimeError(f"exit {expected['exit']}: {expected['stderr']}")
    exits, losses, saving = [], {}, []
    for end in [*range(2, steps - 1, 2), steps]:
        asked = [0.0]

        def ask(step: dict[str, Any], child: subprocess.Popen[str], end: int = end, asked: list[float] = asked) -> None:
            losses[step["step"]] = step["loss"]
            if step["step"] == end < steps:
                asked[0] = time.monotonic()
                child.send_signal(signal.SIGTERM)

        found = vtools_train(bench, folder, "small", options, ask, out=out)
        exits.append(found["exit"])
        if asked[0]:
            saving.append(found["wall_s"] - (asked[0] - found["began"]))
        if found["exit"] not in (0, 75):
            raise RuntimeError(f"exit {found['exit']} after step {end}: {found['stderr']}")
    same = [hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest() for one in (whole, out)]
    bench.note(
        "preempt",
        preemptions=exits.count(75),
        bit_equal=same[0] == same[1] and losses == {step["step"]: step["loss"] for step in expected["steps"]},
        sigterm_to_exit_s=statistics.median(saving),
        exits=exits,
    )
    if same[0] != same[1] or exits.count(75) < PREEMPTIONS:
        raise RuntimeError(f"{exits.count(75)} preemptions, weights equal: {same[0] == same[1]}")


def plan(bench: Bench, folder: Path, name: str, options: list[str]) -> dict[str, Any]:
    """What the command's own --dry-run foresees: GB by purpose, recomputation, tokens of a micro-batch."""
    command = [*train_command(bench, folder, name, options), "--dry-run", "--quiet"]
    done = subprocess.run(command, env=bench.environment, capture_output=True, text=True, timeout=180)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout)
    return {key: found[key] for key in ("memory_gb", "recompute", "micro_tokens", "problem")}


def peers(bench: Bench, name: str) -> None:
    for contender in PEERS:
        section = f"{name}-peers"
        missing = [one for one in needed(contender) if util.find_spec(one) is None]
        if missing:
            bench.note(section, contender=contender, skipped=f"{', '.join(missing)} is not installed")
        elif bench.fits(section, contender):
            with bench.guarded(section, contender):
                peer(bench, name, contender)


def needed(contender: str) -> list[str]:
    words = contender.split()
    return (["trl", "datasets"] if "trl" in words else ["accelerate"]) + (["liger_kernel"] if "liger" in words else [])


def peer(bench: Bench, name: str, contender: str) -> None:
    """One peer with the first of its settings that fits into memory."""
    folder = made(bench, name)
    words = contender.split()
    for rows, checkpointing in PEER_SETTINGS[name, words[1]]:
        out = tempfile.mkdtemp(dir=bench.work)
        job = {
            "library": words[0],
            "packed": "packed" in words,
            "liger": "liger" in words,
            "rows": min(rows, bench.batch(name)),
            "checkpointing": checkpointing,
            "batch": bench.batch(name),
            "steps": STEPS["peer"],
            "max_tokens": bench.max_tokens,
            "seed": 0,
            "cpu": bench.dry,
            "out": out,
        }
        command = [sys.executable, trl_train.__file__, "_peer", str(folder), json.dumps(job)]
        found = measured(bench, command)
        setting = f"{contender}, {rows} rows{', checkpointing' if checkpointing else ''}"
        h200_results.report(bench, f"{name}-peers", setting, found, "peer")
        shutil.rmtree(out, ignore_errors=True)
        fitted = len(found["steps"]) == STEPS["peer"] or "out of memory" not in found["stderr"].lower()
        if (fitted and not bench.settings.all_settings) or not bench.fits(f"{name}-peers", contender):
            return


def vtools_train(
    bench: Bench,
    folder: Path,
    name: str,
    options: list[str],
    each: Callable[[dict[str, Any], subprocess.Popen[str]], None] = lambda step, child: None,
    batch: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """The command itself, as people run it; without `out` its results are removed."""
    place = out or Path(tempfile.mkdtemp(dir=bench.work))
    try:
        return measured(bench, [*train_command(bench, folder, name, options, batch), "--out", str(place)], each)
    finally:
        if not out:
            shutil.rmtree(place, ignore_errors=True)


def train_command(bench: Bench, folder: Path, name: str, options: list[str], batch: int | None = None) -> list[str]:
    base = json.loads((folder / "base.json").read_text())
    command = [sys.executable, "-m", "vtools", "train", "--model", base, "--data", str(folder / "chats.jsonl")]
    command += ["--batch", str(batch or bench.batch(name)), "--max-tokens", str(bench.max_tokens)]
    return [*command, "--dtype", "bf16", "--lr", "2e-5", *options]


def measured(
    bench: Bench,
    command: list[str],
    each: Callable[[dict[str, Any], subprocess.Popen[str]], None] = lambda step, child: None,
) -> dict[str, Any]:
    """trl_train.watch, with the card's highest memory beside it, and an idle card before."""
    for _ in range(60):
        if int(nvidia("memory.used") or 0) < 2000:
            break
        time.sleep(0.5)
    peak, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(1) and (used := nvidia("memory.used")):
            peak[0] = max(peak[0], int(used))

    looking = threading.Thread(target=look, daemon=True)
    if not bench.dry:
        looking.start()
    try:
        found = trl_train.watch(command, bench.environment, each, limit_s=max(20, min(240, bench.left_s)))
    finally:
        ended.set()
    return {**found, "card_gb": peak[0] * 2**20 / 1e9}


# Models and conversations


def made(bench: Bench, name: str) -> Path:
    """The folder with a shape's model and conversations (base.json, chats.jsonl, tokens.jsonl), made once."""
    folder = bench.work / name
    if not (folder / "tokens.jsonl").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        began = time.monotonic()
        steps = 2 * PREEMPTIONS + 2 if name == "small" else STEPS["vtools"]
        most = max(bench.batch(name) * steps, 20 * STALL_BATCH if name == "1b" and not bench.dry else 0)
        job = {**bench.shape(name), "max_tokens": bench.max_tokens, "conversations": most, "dry": bench.dry}
        job |= {"take": bench.batch(name) * steps}
        command = [sys.executable, str(HERE / "random_llama.py"), str(folder), json.dumps(job)]
        done = subprocess.run(command, env=bench.environment, capture_output=True, text=True, timeout=240)
        if done.returncode:
            raise RuntimeError(f"making the {name} model: {done.stderr.strip()[-500:]}")
        bench.note(name, made_in_s=time.monotonic() - began, **json.loads(done.stdout.splitlines()[-1]))
    return folder


if __name__ == "__main__":
    main()
