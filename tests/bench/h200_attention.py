"""Document attention beside SDPA one document at a time, and flash-attn where it is installed, on one GPU.

A child of h200_train.py, which gives it its settings as JSON and reads a line of JSON for each shape. Without a GPU it
compares on the CPU, and sends the GPU's path meta tensors.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
from collections.abc import Callable
from importlib import util
from typing import Any

from random_llama import MAX_TOKENS, lengths


def main(job: dict[str, Any]) -> None:
    """Outputs and gradients against fp32 SDPA one document at a time; on a GPU also the time of each way."""
    import torch

    cuda = torch.cuda.is_available() and not job["dry"]
    shapes = {"7b": (32, 32, 128), "1b, grouped": (32, 4, 64), "llama 3, grouped": (32, 8, 128)}
    counts = lengths(14, MAX_TOKENS, job["seed"])
    if not cuda:
        counts = [7, 33, 12]
        shapes = {name: (4, 4 if groups == heads else 2, 64) for name, (heads, groups, _) in shapes.items()}
    for name, shape in shapes.items():
        try:
            print(json.dumps({"shape": name, "documents": len(counts), **compare(shape, counts, cuda)}), flush=True)
        except Exception as error:  # the other shapes are still of interest
            print(json.dumps({"shape": name, "error": f"{type(error).__name__}: {error}"[:500]}), flush=True)


def compare(shape: tuple[int, int, int], counts: list[int], cuda: bool) -> dict[str, Any]:
    import torch
    import torch.nn.functional as F

    from vtools.train.attention import document_attention

    heads, groups, size = shape
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    torch.manual_seed(0)
    inputs = [torch.randn(1, number, ends[-1], size, device=device, dtype=dtype) for number in (heads, groups, groups)]
    slope = torch.randn(1, ends[-1], heads, size, device=device, dtype=dtype)
    starts = torch.tensor(ends, dtype=torch.int32, device=device)
    longest = max(counts)

    def documents(query: Any, key: Any, value: Any) -> Any:
        known: dict[str, Any] = {
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        return document_attention(torch.nn.Identity(), query, key, value, None, **known)[0]

    def single(query: Any, key: Any, value: Any) -> Any:
        parts = []
        for start, end in zip(ends, ends[1:], strict=False):
            q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
            parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != groups))
        return torch.cat(parts, dim=2).transpose(1, 2)

    def flash(query: Any, key: Any, value: Any) -> Any:
        from flash_attn import flash_attn_varlen_func

        rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return flash_attn_varlen_func(*rows, starts, starts, longest, longest, causal=True).unsqueeze(0)

    def both(way: Callable[..., Any], tensors: list[Any], gradient: Any) -> list[Any]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        output = way(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]

    exact = both(single, [tensor.float() for tensor in inputs], slope.float())

    def error(way: Callable[..., Any]) -> list[float]:
        found = both(way, inputs, slope)
        return [((one.float() - true).norm() / true.norm()).item() for one, true in zip(found, exact, strict=True)]

    ways = {"documents": documents, "sdpa": single}
    if cuda and util.find_spec("flash_attn"):
        ways["flash_attn"] = flash
    errors = {name: error(way) for name, way in ways.items()}
    # As near to fp32 as SDPA in the same dtype is (output, then the gradients of q, k and v).
    equal = all(one <= 2 * other + 1e-5 for one, other in zip(errors["documents"], errors["sdpa"], strict=True))
    result: dict[str, Any] = {"equal": equal}
    result |= {f"error_{name}": [f"{one:.1e}" for one in found] for name, found in errors.items()}
    if cuda:
        flops = 3.5 * 2 * heads * size * sum(count * count for count in counts)
        for name, way in ways.items():
            seconds = timed(functools.partial(both, way, inputs, slope))
            result |= {f"ms_{name}": seconds * 1000, f"tflops_{name}": flops / seconds / 1e12}
    else:
        meta = [tensor.to(torch.bfloat16).to("meta").requires_grad_() for tensor in inputs]
        starts = starts.to("meta")
        output = documents(*meta)
        gradients = torch.autograd.grad(output.sum(), meta)
        result["meta"] = output.shape == slope.shape and all(
            one.shape == other.shape for one, other in zip(gradients, meta, strict=True)
        )
    return result


def timed(call: Callable[[], Any]) -> float:
    """The median seconds of a call on the GPU, of 20 after 5."""
    import torch

    times = []
    for _ in range(25):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[5:])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
