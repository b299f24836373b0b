"""What `vtools train` does where its first choice cannot be had: an attention kernel, an argument of it, pinned memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import sharded

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from vtools.process import Failure  # noqa: E402
from vtools.train import attention, checkpoint, memory  # noqa: E402

BF16, META = torch.bfloat16, torch.device("meta")


def attended(size: int, window: int | None = None) -> Any:
    """The path of a GPU, on tensors without values: four query heads, two of keys, two documents."""
    query, key, value = (torch.empty(1, heads, 10, size, device=META, dtype=BF16) for heads in (4, 2, 2))
    starts = torch.empty(3, device=META, dtype=torch.int32)
    more: dict[str, Any] = {"cu_seq_lens_q": starts, "max_length_q": 6, "sliding_window": window}
    return attention.document_attention(torch.nn.Identity(), query, key, value, None, **more)[0]


def test_head_sizes_that_the_kernel_does_not_take_go_another_way() -> None:
    for size in (8, 64, 96, 256):
        assert attention.has_kernel(META, BF16, size)
        assert attended(size).shape == (1, 10, 4, size)
    for size in (4, 12, 100, 264, 512):
        assert not attention.has_kernel(META, BF16, size)


@pytest.mark.parametrize("size", [100, 264])
def test_a_gpu_run_with_an_odd_head_size_can_be_planned(size: int) -> None:
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=size, vocab_size=1000,
    )  # fmt: skip
    with META:
        network = AutoModelForCausalLM.from_config(config)
    plan = memory.choose(network, 1, 512, BF16, "cuda", 20 << 30, compiled=False)
    assert plan.memory.total < 20 << 30 and plan.memory.activations > 0


@pytest.mark.parametrize("torch_release", ["2.10", "2.11", "2.13"])
def test_the_kernel_gets_the_arguments_that_its_torch_release_knows(
    torch_release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention import varlen

    seen: dict[str, Any] = {}

    def of_2_10(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, scale=None):
        seen.update(is_causal=is_causal, key=k.shape)
        return torch.empty_like(q)

    def of_2_11(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        seen.update(window_size=window_size, key=k.shape)
        return torch.empty_like(q)

    def of_2_13(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        seen.update(window_size=window_size, key=k.shape, enable_gqa=enable_gqa)
        return torch.empty_like(q)

    releases = {"2.10": of_2_10, "2.11": of_2_11, "2.13": of_2_13}
    monkeypatch.setattr(varlen, "varlen_attn", releases[torch_release])
    assert attended(64).shape == (1, 10, 4, 64)
    expected = {
        "2.10": {"is_causal": True, "key": (10, 4, 64)},
        "2.11": {"window_size": (-1, 0), "key": (10, 4, 64)},
        "2.13": {"window_size": (-1, 0), "key": (10, 2, 64), "enable_gqa": True},
    }
    assert seen == expected[torch_release]
    if torch_release == "2.10":
        with pytest.raises(Failure, match="no sliding-window attention"):
            attended(64, window=4)
    else:
        attended(64, window=4)
        assert seen["window_size"] == (3, 0)


class Refusing:
    """Stands for the copy in pinned memory on a host whose system pins none."""

    closed = False

    def stage(self, state: Any) -> Any:
        raise RuntimeError("Registering memory failed with cudaError: 2.")

    def close(self) -> None:
        self.closed = True


def test_a_host_that_pins_no_memory_saves_while_training_waits(
    base: Path, alone: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = sharded(base, alone)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    saved = checkpoint.Checkpoints(tmp_path, 2, alone)
    refusing: Any = Refusing()
    saved._stager = refusing
    for step in (1, 2):
        saved.save(step, network, optimizer, {}, wait=False)
        saved.finish()
    assert refusing.closed and capfd.readouterr().err.count("training waits for checkpoints") == 1
    found = checkpoint.latest(tmp_path)
    assert found is not None and found[1]["step"] == 2
    before = {name: parameter.to_local().clone() for name, parameter in network.named_parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    checkpoint.restore(found[0], 2, network, optimizer, alone)
    assert all(torch.equal(parameter.to_local(), before[name]) for name, parameter in network.named_parameters())
