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

import trl_train
from random_llama import MAX_TOKENS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VOCABULARY = 32000
Shape = dict[str, int]
SHAPES: dict[str, Shape] = {
    "1b": {"width": 2048, "inner": 5632, "layers": 22, "heads": 32, "groups": 4, "vocabulary": VOCABULARY},
    "7b": {"width": 4096, "inner": 11008, "layers": 32, "heads": 32, "groups": 32, "vocabulary": VOCABULARY},
}
TINY: Shape = {"width": 64, "inner": 128, "layers": 2, "heads": 4, "groups": 2, "vocabulary": 512}
STALL_BATCH = 64
BATCH = {"1b": 32, "7b": 16}  # conversations a step, about 1,130 tokens each
STEPS = {"vtools": 12, "peer": 5}
UNCOUNTED = {"vtools": 4, "peer": 2}
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
EXPECTED = {"attention": 30, "1b": 75, "stall": 80, "7b": 120, "1b-peers": 45, "7b-peers": 70}
EXPECTED_OF_SWEEP = 45  # one run


class Bench:
    """What all sections share: settings, the clock, and where results go."""

    def __init__(self, settings: argparse.Namespace, work: Path) -> None:
        self.settings, self.work = settings, work
        self.dry: bool = settings.dry_run
        self.began = time.monotonic()
        self.results: list[dict[str, Any]] = []
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

    def shape(self, name: str) -> Shape:
        return TINY if self.dry else SHAPES[name]

    @property
    def max_tokens(self) -> int:
        return 128 if self.dry else MAX_TOKENS

    def batch(self, name: str) -> int:
        return self.settings.batch or (4 if self.dry else BATCH[name])

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
    }
    with tempfile.TemporaryDirectory(prefix="vtools-bench-", dir=settings.work) as name:
        bench = Bench(settings, Path(name))
        about(bench)
        for section, run in sections.items():
            if section not in settings.skip and (not settings.only or section in settings.only):
                with bench.guarded(section):
                    run(bench)
        summary(bench)


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
    short = name == "7b" or bench.settings.sweep  # 13.5 GB need not be exported to know the speed
    for number, options in enumerate(several):
        if number and not bench.fits(name, options, EXPECTED_OF_SWEEP if bench.settings.sweep else None):
            continue
        with bench.guarded(name, f"vtools {options}".strip()):
            last = STEPS["vtools"]

            def enough(step: dict[str, Any], child: subprocess.Popen[str], last: int = last) -> None:
                if short and step["step"] >= last:
                    trl_train.end(child)

            found = vtools_train(bench, folder, name, ["--max-steps", str(last), *shlex.split(options)], enough)
            report(bench, name, f"vtools {options}".strip(), found, "vtools", killed=short)


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
    plain = [step["seconds"] / step["tokens"] for step in steps if UNCOUNTED["vtools"] < step["step"] < 8]
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
        report(bench, f"{name}-peers", setting, found, "peer")
        shutil.rmtree(out, ignore_errors=True)
        fitted = len(found["steps"]) == STEPS["peer"] or "out of memory" not in found["stderr"].lower()
        if (fitted and not bench.settings.all_settings) or not bench.fits(f"{name}-peers", contender):
            return


def vtools_train(
    bench: Bench,
    folder: Path,
    name: str,
    options: list[str],
    each: Callable[[dict[str, Any], subprocess.Popen[str]], None],
    batch: int | None = None,
) -> dict[str, Any]:
    """The command itself, as people run it."""
    out = tempfile.mkdtemp(dir=bench.work)
    base = json.loads((folder / "base.json").read_text())
    command = [sys.executable, "-m", "vtools", "train", "--model", base, "--data", str(folder / "chats.jsonl")]
    command += ["--out", out, "--batch", str(batch or bench.batch(name)), "--max-tokens", str(bench.max_tokens)]
    command += ["--dtype", "bf16", "--lr", "2e-5", *options]
    try:
        return measured(bench, command, each)
    finally:
        shutil.rmtree(out, ignore_errors=True)


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


def report(bench: Bench, section: str, contender: str, found: dict[str, Any], kind: str, killed: bool = False) -> None:
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


def flops_per_token(shape: Shape, folder: Path) -> float:
    """FLOPs of training one real token: matrix products, and causal attention within documents."""
    width, size = shape["width"], shape["width"] // shape["heads"]
    layer = 2 * width * width + 2 * width * size * shape["groups"] + 3 * width * shape["inner"]
    matrices = shape["layers"] * layer + width * shape["vocabulary"]
    lengths = [len(json.loads(text)["input_ids"]) for text in (folder / "tokens.jsonl").open()]
    seen = sum(length * length for length in lengths) / sum(lengths)
    return 6 * matrices + 6 * shape["layers"] * width * seen


def summary(bench: Bench) -> None:
    """Ours over each peer, in one run."""
    print()
    for name in SHAPES:
        mine = [one for one in bench.results if one["section"] == name and "tokens_per_s" in one]
        rivals = [one for one in bench.results if one["section"] == f"{name}-peers" and "tokens_per_s" in one]
        for one in sorted(mine, key=lambda one: one["tokens_per_s"]) + rivals:
            print(
                f"{name} {one['contender']:<62} {one['tokens_per_s']:9.0f} tok/s  {100 * one['mfu']:5.1f} % MFU  "
                f"{one['mem_gb']:6.1f} GB, card {one['card_gb']:6.1f} GB, first step {one['first_step_s']:5.1f} s"
            )
        if mine and rivals:
            best = max(mine, key=lambda one: one["tokens_per_s"])
            for one in rivals:
                memory = "".join(
                    f", {best[key] / one[key]:.2f} x its {what}"
                    for key, what in (("mem_gb", "allocated memory"), ("card_gb", "memory of the card"))
                    if one[key]
                )
                print(f"{name} vtools is {best['tokens_per_s'] / one['tokens_per_s']:.2f} x {one['contender']}{memory}")
    for one in bench.results:
        if "error" in one or "skipped" in one:
            print(
                f"{one['section']} {one.get('contender') or one.get('part', '')}: {one.get('error') or one['skipped']}"
            )
    print(f"{(time.monotonic() - bench.began) / 60:.1f} minutes; all of it in {bench.settings.out / 'results.jsonl'}")


# Models and conversations


def made(bench: Bench, name: str) -> Path:
    """The folder with a shape's model and conversations (base.json, chats.jsonl, tokens.jsonl), made once."""
    folder = bench.work / name
    if not (folder / "tokens.jsonl").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        began = time.monotonic()
        most = max(bench.batch(name) * STEPS["vtools"], 0 if bench.dry or name == "7b" else 20 * STALL_BATCH)
        job = {**bench.shape(name), "max_tokens": bench.max_tokens, "conversations": most, "dry": bench.dry}
        job |= {"take": bench.batch(name) * STEPS["vtools"]}
        command = [sys.executable, str(HERE / "random_llama.py"), str(folder), json.dumps(job)]
        done = subprocess.run(command, env=bench.environment, capture_output=True, text=True, timeout=240)
        if done.returncode:
            raise RuntimeError(f"making the {name} model: {done.stderr.strip()[-500:]}")
        bench.note(name, made_in_s=time.monotonic() - began, **json.loads(done.stdout.splitlines()[-1]))
    return folder


if __name__ == "__main__":
    main()
