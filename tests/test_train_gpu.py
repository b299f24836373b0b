"""`vtools train` on a CUDA device: its attention kernel, its losses, and that a killed run ends with the same bits."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import good, start

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from vtools.train import attention  # noqa: E402

ARGUMENTS = ["--batch", 4, "--max-steps", 12, "--lr", 1e-2, "--warmup", 2, "--nproc", 1, "--quiet"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """A tiny model and conversations for it, as arguments."""
    folder = tmp_path_factory.mktemp("gpu")
    path = tiny.write(folder / "data.jsonl", tiny.conversations(24))
    return ["--model", tiny.make(folder / "base"), "--data", path, *ARGUMENTS]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Compiled kernels of tests stay out of the user's cache; the GPU is the first one, not hidden."""
    folder = tmp_path_factory.mktemp("cache")
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "kernels"), "CUDA_VISIBLE_DEVICES": device}


def train(out: Path, given: list[Any], cache: dict[str, str], *options: Any) -> list[dict[str, Any]]:
    """The metrics of a whole run's steps."""
    return [row for row in good("train", *given, "--out", out, *options, env=cache) if "loss" in row]


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("heads", "groups", "size"), [(8, 8, 128), (8, 2, 64), (32, 4, 64)])
def test_packed_attention_equals_that_of_each_document_alone(
    heads: int, groups: int, size: int, window: int | None
) -> None:
    torch.manual_seed(0)
    lengths = [700, 1, 129, 64, 333]
    tokens = sum(lengths)
    inputs = [torch.randn(1, number, tokens, size, device="cuda").bfloat16() for number in (heads, groups, groups)]
    slope = torch.randn(1, tokens, heads, size, device="cuda").bfloat16()
    starts = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()

    def packed(query: Any, key: Any, value: Any) -> Any:
        return attention.document_attention(
            torch.nn.Identity(), query, key, value, None,
            cu_seq_lens_q=starts, max_length_q=max(lengths), sliding_window=window,
        )[0]  # fmt: skip

    def alone(query: Any, key: Any, value: Any) -> Any:
        outputs = []
        for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
            place = torch.arange(q.shape[2], device="cuda")
            distance = place[:, None] - place[None, :]
            seen = (distance >= 0) & (distance < (window or tokens))
            k, v = (tensor.repeat_interleave(heads // groups, dim=1) for tensor in (k, v))
            outputs.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen))
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def both(way: Any, tensors: list[Any], gradient: Any) -> list[Any]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        output = way(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]

    exact = both(alone, [tensor.float() for tensor in inputs], slope.float())
    for found, true in zip(both(packed, inputs, slope), exact, strict=True):
        assert ((found.float() - true).norm() / true.norm()).item() < 1e-2


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_compiled_run_on_the_gpu_has_the_losses_of_the_cpu(
    dtype: str, given: list[Any], cache: dict[str, str], tmp_path: Path
) -> None:
    there = train(tmp_path / "gpu", given, cache, "--dtype", dtype, "--compile")
    here = train(tmp_path / "cpu", given, cache | {"CUDA_VISIBLE_DEVICES": ""}, "--dtype", "fp32")
    for found, expected in zip(there, here, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=2e-2)
        assert found["trained_tokens"] == expected["trained_tokens"]
    assert there[-1]["loss"] < 0.9 * there[0]["loss"]
    assert all(row["mem_gb"] > 0 for row in there)


@pytest.mark.parametrize(
    "options",
    [["--compile"], ["--no-compile"], ["--compile", "--recompute", "selective"], ["--compile", "--dtype", "fp16"]],
    ids=" ".join,
)
def test_a_run_that_is_killed_ends_with_the_bits_of_one_that_was_not(
    options: list[str], given: list[Any], cache: dict[str, str], tmp_path: Path
) -> None:
    """Checkpoints are written beside the training; the second start has a cold compiler, as on another machine."""
    chosen = ["--save-every", 2, "--save-dtype", "fp32", *options]
    whole = train(tmp_path / "whole", given, cache, *chosen)
    out = tmp_path / "killed"
    seen = []
    with start("train", *given, "--out", out, *chosen, env=cache) as child:
        assert child.stdout is not None
        for line in child.stdout:
            seen.append(json.loads(line))
            # The newest checkpoint may still be on its way to disk; an older one is whole.
            if seen[-1]["step"] >= 7 and list((out / "checkpoints").glob("step-*/note.json")):
                child.send_signal(signal.SIGKILL)
                break
    cold = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
    rest = train(out, given, cache | cold, *chosen)
    assert 0 < rest[0]["step"] - 1 < 12 and rest[-1]["step"] == 12
    assert [row["loss"] for row in rest] == [row["loss"] for row in whole[-len(rest) :]]
    assert all(math.isfinite(row["ckpt_ms"]) for row in rest)
    first, second = (tiny.tree(folder) for folder in (tmp_path / "whole", out))
    assert {name: data for name, data in first.items() if name.endswith(".safetensors")} == {
        name: data for name, data in second.items() if name.endswith(".safetensors")
    }
