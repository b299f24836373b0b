"""apply-delta beside `cp` + `sync` and FastChat's apply_delta, on a generated 1.3 B model (2.7 GB fp16, three shards).

    python tests/bench/delta_peers.py [--folder DIR] [--rounds 5] [--fastchat-rounds 2] [--only NAME ...]

Prints a table of wall and CPU seconds and peak memory, and the ratios of the medians. Every run ends when its files are
on the disk: ours sync them, after `cp` and FastChat `sync` does. Needs 25 GB of disk in DIR; FastChat's rows need fschat,
torch and transformers. Runs of one round follow each other, so that a slow minute of the machine meets them all.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
from pathlib import Path

import cost

HIDDEN, WIDE, HEADS, VOCABULARY = 2048, 5504, 16, 32000
SIZES = {"large": 24, "small": 3}  # layers: 2.7 and 0.57 GB
SHARDS = 3
ROOT = Path(__file__).resolve().parents[2]


def shapes(layers):
    """Every tensor's shape, in the order of the files."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        for name in "qkvo":
            yield f"model.layers.{layer}.self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        yield f"model.layers.{layer}.mlp.gate_proj.weight", (WIDE, HIDDEN)
        yield f"model.layers.{layer}.mlp.up_proj.weight", (WIDE, HIDDEN)
        yield f"model.layers.{layer}.mlp.down_proj.weight", (HIDDEN, WIDE)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def generate(folder, layers, dtype):
    """base, target (deviation .02, delta .0005) and FastChat's delta of them, as a Hugging Face folder each."""
    import numpy as np

    sys.path.insert(0, str(ROOT))
    from vtools.weights.dtypes import convert

    tensors = list(shapes(layers))
    total = sum(2 * rows[0] * (rows[1] if len(rows) > 1 else 1) for _, rows in tensors)
    groups, held = [[]], 0
    for name, shape in tensors:
        if held > total / SHARDS * len(groups):
            groups.append([])
        groups[-1].append((name, shape))
        held += 2 * int(np.prod(shape))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "num_hidden_layers": layers, "vocab_size": VOCABULARY,
        "tie_word_embeddings": False, "dtype": {"F16": "float16", "BF16": "bfloat16"}[dtype], "rms_norm_eps": 1e-6,
    }  # fmt: skip
    source = np.random.default_rng(0)
    for kind in ("base", "target", "fp"):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in group:
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
            weight_map[name] = file
        raw = json.dumps(header).encode()
        streams = [open(folder / kind / file, "wb") for kind in ("base", "target", "fp")]  # noqa: SIM115
        for stream in streams:
            stream.write(struct.pack("<Q", len(raw)) + raw)
        for _, shape in group:
            for rows in [min(1024, shape[0] - start) for start in range(0, shape[0], 1024)]:
                count = rows * int(np.prod(shape[1:], dtype=int))
                values = source.standard_normal(count, np.float32) * np.float32(0.02)
                tuned = values + source.standard_normal(count, np.float32) * np.float32(5e-4)
                base, target = (convert(v.view(np.uint8), "F32", dtype) for v in (values, tuned))
                single = [convert(half, dtype, "F32").view("<f4") for half in (base, target)]
                change = convert((single[1] - single[0]).view(np.uint8), "F32", dtype)
                for stream, data in zip(streams, (base, target, change), strict=True):
                    stream.write(data.data)
        for stream in streams:
            stream.close()
    for kind in ("base", "target", "fp"):
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / kind / "model.safetensors.index.json").write_text(json.dumps(index))


# FastChat's own function; only its tokenizer, which these folders lack, is left out.
FASTCHAT = """
import sys
from unittest import mock
from fastchat.model import apply_delta
apply_delta.AutoTokenizer = mock.MagicMock()
apply_delta.apply_delta(*sys.argv[1:])
"""


# Runs a command, then waits until the files of the folder $0 are on the disk.
SYNCED = ["sh", "-c", '"$@" && sync "$0"/* "$0"']


def commands(folder, out):
    vtools = [sys.executable, "-m", "vtools", "apply-delta", "-q", str(folder / "base")]
    make = [sys.executable, "-m", "vtools", "make-delta", "-q", str(folder / "base"), str(folder / "target"), out]
    return {
        "make raw": [*make, "--codec", "raw"],
        "make zstd": [*make, "--codec", "zstd"],
        "cp": [*SYNCED, out, "cp", "-r", str(folder / "target"), out],
        "raw": [*vtools, str(folder / "raw"), out],
        "zstd": [*vtools, str(folder / "zstd"), out],
        "fp": [*vtools, str(folder / "fp"), out],
        "fastchat": [*SYNCED, out, sys.executable, "-c", FASTCHAT, str(folder / "base"), out, str(folder / "fp")],
    }


INPUTS = {
    "make raw": ["base", "target"], "make zstd": ["base", "target"], "cp": ["target"],
    "raw": ["base", "raw"], "zstd": ["base", "zstd"], "fp": ["base", "fp"], "fastchat": ["base", "fp"],
}  # fmt: skip


def prepare(folder, names, cold):
    """Inputs all in the page cache, or all out of it; nothing left to be written."""
    os.sync()
    for name in names:
        for path in (folder / name).rglob("*"):
            if path.is_file():
                with open(path, "rb", buffering=0) as stream:
                    if cold:
                        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    else:
                        while stream.read(1 << 22):
                            pass


def measure(name, folder, cold=False):
    """The cost of one run, with the inputs in the page cache or, `cold`, out of it."""
    out = folder / "out"
    prepare(folder, INPUTS[name], cold)
    shutil.rmtree(out, ignore_errors=True)  # at the last moment: a virtual machine soon gives freed pages back
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        return cost.of(commands(folder, str(out))[name], environment, cwd=ROOT)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{name} failed: {error.stderr}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/vtools-delta-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fastchat-rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["cp", "raw", "zstd", "fp", "fastchat"])
    parser.add_argument("--clean", action="store_true", help="Remove DIR at the end.")
    parser.add_argument("--generate", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        return generate(Path(options.generate[0]), int(options.generate[1]), options.generate[2])
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not any(options.folder.glob("*/done")) and shutil.disk_usage(options.folder).free < 25e9:
        return print(f"{options.folder}: less than 25 GB free, nothing was compared; --folder names another place")
    if "fastchat" in options.only and importlib.util.find_spec("fastchat") is None:
        print("no peer, no comparison: FastChat (fschat) is not installed")
        options.only.remove("fastchat")
    try:
        compare(options)
    finally:
        if options.clean:
            shutil.rmtree(options.folder)


def compare(options):
    """Everything the table shows, in one run."""
    for size, dtype in (("large", "F16"), ("small", "F16"), ("small", "BF16")):
        folder = options.folder / f"{size}-{dtype}"
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            arguments = ["--generate", str(folder), str(SIZES[size]), dtype]
            subprocess.run([sys.executable, __file__, *arguments], check=True)
            (folder / "done").touch()
        for codec in ("raw", "zstd"):
            wall, cpu, peak = measure(f"make {codec}", folder)
            print(f"make-delta {codec}, {folder.name}: wall {wall:.2f} s, CPU {cpu:.2f} s, peak {peak:.1f} MB")
            shutil.rmtree(folder / codec, ignore_errors=True)
            (folder / "out").rename(folder / codec)
    large, small, halves = (options.folder / name for name in ("large-F16", "small-F16", "small-BF16"))

    rows, cold = {name: [] for name in options.only}, {"cp": [], "raw": [], "zstd": []}
    for number in range(options.rounds):
        for name in options.only:
            if name != "fastchat" or number < options.fastchat_rounds:
                rows[name].append(measure(name, large))
                if name in ("raw", "zstd") and number == 0:
                    for path in (large / "target").iterdir():
                        subprocess.run(["cmp", path, large / "out" / path.name], check=True)
        for name in cold:
            if name in options.only:
                cold[name].append(measure(name, large, cold=True))
    report = {}
    for state, table in (("warm", rows), ("cold", cold)):
        for name, runs in table.items():
            if runs:
                wall, cpu, peak = (statistics.median(column) for column in zip(*runs, strict=True))
                spread = f"{min(run[0] for run in runs):.1f}-{max(run[0] for run in runs):.1f}"
                report[state, name] = wall, cpu, peak
                print(f"{state:5} {name:9} wall {wall:6.2f} s ({spread})  CPU {cpu:6.2f} s  peak {peak:7.1f} MB")
    for state, name, peer in [
        ("warm", "raw", "cp"), ("cold", "raw", "cp"), ("warm", "zstd", "cp"), ("cold", "zstd", "cp"), ("warm", "fp", "cp"),
        ("warm", "raw", "fastchat"), ("warm", "zstd", "fastchat"), ("warm", "fp", "fastchat"),
    ]:  # fmt: skip
        if (state, name) in report and (state, peer) in report:
            wall, cpu, peak = (a / b for a, b in zip(report[state, name], report[state, peer], strict=True))
            print(
                f"{state:5} {name} / {peer}: wall {wall:.2f} x, CPU {cpu:.2f} x"
                + (f", memory 1/{1 / peak:.0f}" if peer != "cp" else "")
            )
    for name in ("raw", "zstd"):
        if name in options.only:
            peaks = [measure(name, folder).peak for folder in (small, large)]
            print(f"{name}: peak {peaks[0]:.1f} MB for the small model, {peaks[1]:.1f} MB for the large one")
    for folder in (large, halves):
        size = {name: sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()) for name in ("target", "zstd")}  # fmt: skip
        print(f"zstd delta / target, {folder.name}: {size['zstd'] / size['target']:.3f}")


if __name__ == "__main__":
    main()
