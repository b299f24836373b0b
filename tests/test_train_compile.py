"""The decoder layers of `vtools train` under torch.compile, as a GPU runs them: traced here on the meta device."""

from __future__ import annotations

import functools
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

from vtools.train import attention, pack, shard  # noqa: E402

ROWS = [(40, 3, 20), (64, 5, 33), (77, 1, 77), (1000, 2, 900), (300, 17, 31)]  # tokens, documents, the longest
GRAPHS = 1


def run(network: Any, tokens: int, documents: int, longest: int) -> None:
    """A packed row without values, forward and backward."""

    def empty(*shape: int, dtype: Any = torch.int64) -> Any:
        return torch.empty(shape, dtype=dtype, device="meta")

    row = pack.Packed(
        empty(1, tokens), empty(1, tokens), empty(documents + 1, dtype=torch.int32), longest, empty(3), empty(3)
    )
    network.zero_grad()
    hidden = pack.hidden_states(network, row)
    assert hidden.shape == (tokens, 64)
    hidden.sum().backward()
    assert all(parameter.grad is not None for parameter in network.base_model.parameters())


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_rows_of_every_size_share_the_compiled_code_of_a_layer_without_a_graph_break(
    recompute: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    }  # fmt: skip
    kind = transformers.MistralForCausalLM if window else transformers.LlamaForCausalLM
    if window:
        settings["sliding_window"] = window
    with torch.device("meta"):
        network = kind(kind.config_class(**settings)).to(torch.bfloat16)
    network.set_attn_implementation(attention.NAME)
    network.config.use_cache = False
    network.train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counter = CompileCounterWithBackend("aot_eager")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter, fullgraph=True))
        shard.recompute_layers(network, recompute, compiled=True)
    try:
        run(network, *ROWS[0])
        first = counter.frame_count
        assert 1 <= first <= GRAPHS
        for sizes in ROWS[1:]:
            run(network, *sizes)
        assert counter.frame_count == first
        assert not torch._dynamo.utils.counters["graph_break"]
        assert any("_varlen_attn" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)
        run(network, 1, 1, 1)  # what a rank without work runs: sizes of 1 are constants in every compiled graph
        assert counter.frame_count <= first + GRAPHS
    finally:
        torch._dynamo.reset()
