"""What `vtools train` foresees: arithmetic, memory, time and dollars, against published figures and real memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from running import PEAK, python

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config  # noqa: E402

from vtools import machine  # noqa: E402
from vtools.process import Failure  # noqa: E402
from vtools.train import attention, dry_run, flops, lora, memory, shard  # noqa: E402

BF16, FP32, CPU = torch.bfloat16, torch.float32, torch.device("cpu")
GIB = 1 << 30


def llama(hidden: int, inner: int, layers: int, heads: int, grouped: int, vocabulary: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=grouped,
        vocab_size=vocabulary,
        **more,
    )


LLAMA_7B = llama(4096, 11008, 32, 32, 32, 32000)
LLAMA_13B = llama(5120, 13824, 40, 40, 40, 32000)
LLAMA_8B = llama(4096, 14336, 32, 32, 8, 128256)
LLAMA_1B = llama(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True)
TINY_1B = llama(2048, 5632, 22, 32, 4, 32000)
SMOLLM2 = llama(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True)
SMALL = llama(64, 128, 2, 4, 2, 300)


def network_of(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def shape_of(config: Any) -> flops.Shape:
    return flops.shape_of(network_of(config))


def choose(config: Any, gpu: str, world: int, longest: int = 2048, **given: Any) -> memory.Plan:
    available = given.pop("available", None) or machine.gpu(gpu)[1]
    return memory.choose(network_of(config), world, longest, BF16, "cuda", available, **given)


# Arithmetic


@pytest.mark.parametrize(
    ("config", "parameters", "gigaflops", "state"),
    [
        (LLAMA_7B, 6_738_415_616, 41.25, 107.8),
        (LLAMA_13B, 13_015_864_320, 79.6, 208.3),
        (LLAMA_8B, 8_030_261_248, 46.6, 128.5),
        (LLAMA_1B, 1_235_814_400, 7.82, 19.8),
        (TINY_1B, 1_100_048_384, 6.76, 17.6),
    ],
)
def test_published_models_have_their_known_size_arithmetic_and_state(
    config: Any, parameters: int, gigaflops: float, state: float
) -> None:
    shape = shape_of(config)
    assert shape.parameters == shape.trainable == parameters
    ends = shape.root_parameters + shape.embedding_parameters + shape.head_parameters
    assert ends + shape.layers * shape.layer_parameters == parameters
    assert float(f"{flops.operations(shape, 2048, 2048**2) / 2048 / 1e9:.2f}") == pytest.approx(gigaflops, abs=0.05)
    needed = memory.needed(shape, memory.Activations(0, 0, 0), 1, 2048, BF16, "cuda", 0)
    assert round(needed.state / 1e9, 1) == state


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_matrix_products_are_counted_as_torch_counts_them(tied: bool, frozen: bool) -> None:
    model = AutoModelForCausalLM.from_config(llama(64, 128, 2, 4, 2, 300, tie_word_embeddings=tied))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and "mlp" in name))
    ids = torch.zeros(1, 48, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids, use_cache=False).loss.backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(
        count for operation, count in counted.items() if "mm" in str(operation) and "bmm" not in str(operation)
    )
    assert products == flops.operations(flops.shape_of(model), 48, 0)


def test_attention_counts_conversations_and_not_the_row_they_are_packed_in() -> None:
    shape = shape_of(LLAMA_7B)
    products = flops.operations(shape, 2048, 0)
    alone, halves = (flops.operations(shape, 2048, squares) - products for squares in (2048**2, 2 * 1024**2))
    assert alone == 2 * halves
    assert alone / (products + alone) == pytest.approx(0.039, abs=0.001)


def test_embeddings_trained_beside_adapters_are_in_the_plan() -> None:
    pytest.importorskip("peft")
    plans, shapes = [], []
    for embeddings in (False, True):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(LLAMA_7B, dtype=BF16)
        lora.inject(model, lora.Adapters(16, 32, embeddings=embeddings))
        shapes.append(flops.shape_of(model))
        plans.append(memory.choose(model, 1, 2048, BF16, "cuda", machine.gpu("H200")[1], "none", 2048).memory)
    both = 2 * 32000 * 4096
    assert shapes[1].trainable == shapes[0].trainable + both
    assert plans[1].state - plans[0].state == 16 * both - 2 * both  # fp32, gradient and moments instead of bf16
    # The head's gradient in fp32, a chunk's share of it, and what is reduced.
    assert plans[1].gathered + plans[1].logits > plans[0].gathered + plans[0].logits + both // 2 * (4 + 2 + 4)


def test_adapters_are_trained_and_the_frozen_base_costs_two_thirds() -> None:
    pytest.importorskip("peft")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LLAMA_7B, dtype=BF16)
    lora.inject(model, lora.Adapters(16, 32))
    shape = flops.shape_of(model)
    base = shape.parameters - shape.trainable
    assert base == 6_738_415_616 and shape.frozen_bytes == 2 * base
    assert shape.trainable == 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    share = flops.operations(shape, 2048, 0) / flops.operations(shape_of(LLAMA_7B), 2048, 0)
    assert 2 / 3 < share < 0.68
    plan = memory.choose(model, 1, 2048, BF16, "cuda", machine.gpu("RTX 4090")[1])
    assert plan.memory.state == int(2 * base + 16 * shape.trainable)
    assert memory.activations(SMALL, "none", FP32, "cpu", adapters=lora.Adapters(16, 32)).kept > 0


# Memory


def test_a_layer_on_a_gpu_keeps_what_its_dimensions_say() -> None:
    hidden, inner, heads = 4096, 11008, 32
    full, selective, none = (memory.activations(LLAMA_7B, mode, BF16, "cuda") for mode in ("full", "selective", "none"))
    assert full.kept == pytest.approx(2 * hidden)  # its input
    # Its input, four projections, the output of attention and its fp32 log-sum, two wide products, one back.
    assert selective.kept == pytest.approx(2 * (7 * hidden + 2 * inner) + 4 * heads)
    assert none.kept > 1.5 * selective.kept
    assert full.kept + full.passing > none.kept  # one layer at a time is recomputed


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config, MistralConfig])
def test_torch_allocates_for_a_real_layer_what_was_foreseen(kind: Any, recompute: Any, dtype: torch.dtype) -> None:
    def config(layers: int) -> Any:  # SmolLM2's layers
        return kind(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9, head_dim=64,
            num_key_value_heads=3, vocab_size=300,
        )  # fmt: skip

    def allocated(layers: int, tokens: int = 256) -> float:
        model = AutoModelForCausalLM.from_config(config(layers), dtype=dtype, attn_implementation=attention.NAME)
        shard.recompute_layers(model, recompute)
        positions = torch.arange(tokens)[None]
        row = {"input_ids": positions, "position_ids": positions, "use_cache": False}
        row["cu_seq_lens_q"] = row["cu_seq_lens_k"] = torch.tensor([0, tokens // 4, tokens], dtype=torch.int32)
        row["max_length_q"] = row["max_length_k"] = tokens
        model.base_model(**row)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            hidden = model.base_model(**row).last_hidden_state
        assert hidden.requires_grad
        return sum(event.self_cpu_memory_usage for event in profile.events()) / tokens

    foreseen = memory.activations(config(9), recompute, dtype, "cpu").kept
    assert foreseen == pytest.approx(allocated(3) - allocated(2), rel=0.02)  # each layer also saves a random state


# One rank alone, with the program's own sharding, packing and loss.
STEPS = """
import json, os, sys, torch, torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig
from vtools.train import attention, device, flops, loss, memory, pack, shard

dtype, recompute, tokens = getattr(torch, sys.argv[1]), sys.argv[2], 2048
device.prepare(torch.device("cpu"))
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
config = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, tie_word_embeddings=True,
)
layer = memory.activations(config, recompute, dtype, "cpu")
model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
foreseen = memory.needed(flops.shape_of(model), layer, 1, tokens, dtype, "cpu", 0)
shard.shard(model, mesh, dtype, recompute)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
packed = pack.pack([(list(range(512)), bytes([0] + [1] * 511))] * (tokens // 512), torch.device("cpu"))
for _ in range(2):
    model(loss.summed_loss, packed).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(json.dumps([PEAK, foreseen.total]), flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "recompute"), [("float32", "none"), ("bfloat16", "selective"), ("float32", "full")])
def test_training_takes_the_memory_that_was_foreseen_and_no_more(dtype: str, recompute: str) -> None:
    done = python(STEPS.replace("PEAK", PEAK), dtype, recompute)
    assert done.returncode == 0, done.errors
    peak, foreseen = json.loads(done.stdout)
    assert 0.65 * foreseen < peak < foreseen


# The choice


def test_vicuna_7b_fits_one_h200_and_13b_does_not_and_says_what_would_do() -> None:
    plan = choose(LLAMA_7B, "H200", 1)
    assert (plan.recompute, plan.micro_tokens, plan.compiled) == ("selective", 8192, True)
    assert plan.memory.total < plan.memory.available == machine.gpu("H200")[1]
    with pytest.raises(
        Failure, match=r"each GPU needs 2\d\d\.\d GB and has 149\.3 GB .*use 2 GPUs \(--nproc\) or --lora"
    ):
        choose(LLAMA_13B, "H200", 1)
    assert choose(LLAMA_13B, "H200", 2).memory.state == 8 * 13_015_864_320
    assert choose(LLAMA_7B, "A100-80G", 8).micro_tokens == 8192
    assert choose(LLAMA_13B, "A100-80G", 8).micro_tokens >= 2048


def test_the_buffers_of_deterministic_attention_are_those_of_flash_attention_2() -> None:
    """Its backward pass: [splits, tokens + 128 documents, heads, size in 32s] fp32, where splits fill the GPU."""

    def buffers(config: Any, tokens: int, documents: int) -> float:
        return memory._attention_buffers(shape_of(config), BF16, "cuda", tokens, documents)

    splits = math.ceil(170 / 32)  # one document, 32 heads
    assert buffers(LLAMA_7B, 8192, 1) == splits * (8192 + 128) * 4096 * 4
    assert buffers(LLAMA_7B, 8192, 600) == (8192 + 128 * 600) * 4096 * 4  # many short ones: padding counts for more
    grouped = 2 * 8192 * 4096 * 2  # gradients of keys and values for each query head
    assert buffers(LLAMA_8B, 8192, 1) == splits * (8192 + 128) * 4096 * 4 + grouped
    odd = llama(320, 640, 2, 8, 8, 300)  # heads of 40 in memory for 64
    assert buffers(odd, 1000, 1) == math.ceil(170 / 8) * (1000 + 128) * 8 * 64 * 4
    assert memory._attention_buffers(shape_of(LLAMA_7B), FP32, "cuda", 8192, 1) == 0
    assert memory._attention_buffers(shape_of(LLAMA_7B), BF16, "cpu", 8192, 1) == 0


def test_each_moment_of_a_step_that_may_need_the_most_is_counted() -> None:
    """What FSDP2 holds in a layer, at the head's loss and at the embedding's gradient, from the sizes alone."""
    layer, head = 202_383_360, 131_072_000
    nothing, full = memory.Activations(0, 0, 0), memory.Activations(8192, 0, 400_000)
    shape = shape_of(LLAMA_7B)
    for world in (1, 8):
        weights = 2 if world == 1 else 3 + 1 / world  # in use and in flight, two bytes each
        within = memory.needed(shape, full, world, 8192, BF16, "cuda", 0)
        reduced = 2 + 4 + 4 + 4 / world  # a gradient, and in fp32 this one, the one before, and this rank's sum
        expected = layer * (2 * weights + reduced) + 4 * head + 6 * 4096
        assert within.gathered == int(expected)
        at_the_head = memory.needed(shape, nothing, world, 128, BF16, "cuda", 0)
        assert at_the_head.gathered + at_the_head.logits >= head * (2 * weights + 4 + 4 / world + 4 + 2)


def test_a_remedy_is_only_named_where_it_helps() -> None:
    with pytest.raises(Failure) as stopped:
        memory.choose(network_of(LLAMA_7B), 1, 2048, BF16, "cpu", 8 * GIB)
    assert "GPU" not in str(stopped.value) and "--lora" not in str(stopped.value)
    with pytest.raises(Failure, match="a lower --max-tokens"):
        choose(LLAMA_7B, "H200", 1, longest=400_000)


@pytest.mark.parametrize(
    ("config", "memories"),
    [(LLAMA_7B, (90, 112, 115, 118, 122, 130, 140, 160, 200)), (SMOLLM2, (3, 4, 5, 6, 8, 10, 14))],
)
def test_more_memory_is_never_slower_and_what_is_chosen_fits(config: Any, memories: tuple[int, ...]) -> None:
    network, times = network_of(config), []
    for available in memories:
        try:
            plan = memory.choose(network, 1, 1000, BF16, "cuda", available * 10**9)
        except Failure:
            assert not times
            continue
        assert plan.memory.total <= available * 10**9
        assert 1000 <= plan.micro_tokens <= 8192
        times.append(memory.SLOWDOWN[plan.recompute] * (1 + memory.TOKENS_OF_A_PASS / plan.micro_tokens))
    assert times == sorted(times, reverse=True) and 2 < len(set(times)) < len(memories)
    assert (plan.recompute, plan.micro_tokens) == ("none", 8192)


def test_a_micro_batch_holds_the_longest_conversation_and_what_is_given_is_kept_to() -> None:
    assert choose(LLAMA_7B, "A100-80G", 8, longest=16_000).micro_tokens == 16_000
    plan = choose(TINY_1B, "H200", 1, recompute="full", micro_tokens=3000, compiled=False)
    assert (plan.recompute, plan.micro_tokens, plan.compiled) == ("full", 3000, False)
    small, large = (choose(TINY_1B, "H200", 1, longest=longest, micro_tokens=3000) for longest in (3000, 9000))
    assert large.micro_tokens == 3000 and large.memory.activations == pytest.approx(3 * small.memory.activations)
    with pytest.raises(Failure):
        choose(LLAMA_7B, "H200", 1, recompute="none", micro_tokens=8192)


def test_a_choice_on_the_cpu_is_the_same_where_kernels_must_be_deterministic() -> None:
    def plan() -> memory.Plan:
        return memory.choose(network_of(SMALL), 2, 100, FP32, "cpu", 4 * GIB)

    found = plan()
    assert (found.recompute, found.micro_tokens, found.compiled) == ("none", 2048, False)
    torch.use_deterministic_algorithms(True)
    try:
        assert plan() == found
    finally:
        torch.use_deterministic_algorithms(False)


# The machine, time and money


@pytest.mark.parametrize(
    ("name", "peak", "size"),
    [
        ("NVIDIA H200", 989e12, 139),
        ("NVIDIA H100 80GB HBM3", 989e12, 79),
        ("NVIDIA H100 PCIe", 756e12, 79),
        ("NVIDIA A100-SXM4-80GB", 312e12, 79),
        ("NVIDIA A100 80GB PCIe", 312e12, 79),
        ("NVIDIA A100-SXM4-40GB", 312e12, 39),
        ("A100-80GB", 312e12, 79),
        ("a100-80g", 312e12, 79),
        ("NVIDIA A10G", 70e12, 22),
        ("NVIDIA A10", 125e12, 22),
        ("NVIDIA L4", 121e12, 22),
        ("NVIDIA L40S", 362e12, 44),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 23),
        ("NVIDIA GeForce RTX 3090", 71e12, 23),
        ("Tesla V100-SXM2-32GB", 125e12, 31),
        ("Tesla T4", 65e12, 14),
        ("NVIDIA B200", 2250e12, 178),
        ("AMD Instinct MI300X", 1307e12, 191),
    ],
)
def test_a_gpu_is_known_by_the_name_that_torch_gives_it(name: str, peak: float, size: int) -> None:
    assert machine.gpu(name) == (peak, size * GIB)
    assert machine.peak_flops(name) == peak


def test_an_unknown_gpu_has_no_peak_and_as_a_wish_is_refused() -> None:
    assert machine.peak_flops("Voodoo2") is None
    with pytest.raises(Failure, match=r"--gpu Voodoo2: unknown; choose one of A10, A100, A100-80G"):
        machine.gpu("Voodoo2")


@pytest.mark.parametrize(
    ("line", "folder", "names", "unlimited"),
    [
        ("0::/box/job", "box", ("memory.max", "memory.current", "inactive_file"), "max"),
        (
            "9:cpu:/\n4:memory:/box/job",
            "memory/box",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            "9223372036854771712",
        ),
    ],
)
def test_the_limit_of_a_container_counts_and_its_cached_files_do_not(
    tmp_path: Path, line: str, folder: str, names: tuple[str, str, str], unlimited: str
) -> None:
    (tmp_path / "own").write_text(line + "\n")
    for place, limit in ((tmp_path / folder, "1000"), (tmp_path / folder / "job", unlimited)):
        place.mkdir(parents=True)
        for name, text in zip((*names[:2], "memory.stat"), (limit, "700", f"anon 1\n{names[2]} 200"), strict=True):
            (place / name).write_text(text + "\n")
    assert min(machine._control_groups(tmp_path / "own", tmp_path)) == 500
    assert not list(machine._control_groups(tmp_path / "absent", tmp_path))


def test_processes_of_one_host_share_its_memory() -> None:
    one, four = (machine.available_memory(CPU, processes) for processes in (1, 4))
    assert 0 < four == pytest.approx(one / 4, rel=0.2)


def test_time_and_dollars_follow_from_operations_and_price() -> None:
    peak = machine.gpu("H100")[0]
    found = dry_run.expected(8 * 3600 * 0.45 * 989e12, peak, machine.ASSUMED_MFU, 8, 2.5)
    assert found == {"flops": 8 * 3600 * 0.45 * 989e12, "seconds": 3600.0, "usd": 20.0, "assumed_mfu": 0.45}
    assert dry_run.expected(1e15, None, 0.45, 8, 2.5) == {
        "flops": 1e15,
        "seconds": None,
        "usd": None,
        "assumed_mfu": 0.45,
    }
    assert dry_run.expected(1e15, 1e12, 0.5)["usd"] is None


def test_the_speed_of_a_cpu_is_measured() -> None:
    peak, assumed = machine.speed(CPU, FP32)
    assert peak is not None and math.isfinite(peak) and peak > 1e8 and assumed == 0.5


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_memory_of_a_model_of_few_layers_with_a_list_entry_for_each_can_be_foreseen(layers: int) -> None:
    from transformers import SmolLM3Config

    config = SmolLM3Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, pad_token_id=0,
    )  # fmt: skip
    assert memory.activations(config, "none", BF16, "cpu").kept > 0
