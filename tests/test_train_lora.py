"""`vtools train --lora`: adapters, and what is trained in full beside them, as PEFT reads them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import good, run

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from vtools.models.load import load_model  # noqa: E402
from vtools.process import UsageFailure  # noqa: E402
from vtools.train import lora, shard  # noqa: E402

ROWS = [[5, 9, 77, 3, 120, 40]]


def tuned(base: Path, folder: Path, *options: Any) -> Path:
    """A short run with adapters, all in fp32."""
    path = tiny.write(folder / "data.jsonl", tiny.conversations(20))
    out = folder / "out"
    rows = good(
        "train", "--model", base, "--data", path, "--out", out, "--batch", 4, "--max-steps", 5, "--lora", 4, "--lr", 1e-2,
        "--dtype", "fp32", "--save-dtype", "fp32", *options,
    )  # fmt: skip
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    return out


def adapted(base: Path, out: Path) -> Any:
    """The base with the adapters, loaded by PEFT, which must not complain."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="peft")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        return PeftModel.from_pretrained(plain, out / "adapter")


def test_adapters_merged_into_the_weights_are_what_peft_computes_from_its_files(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tuned(base, tmp_path)
    rows = torch.tensor([[5, 9, 77, 3, 120, 40]])
    untouched = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = untouched(rows).logits
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.allclose(adapted(base, out)(rows).logits, merged(rows).logits, atol=1e-5)
    assert (merged(rows).logits - before).abs().max() > 1e-2
    frozen = merged.get_input_embeddings().weight
    assert torch.equal(frozen, load_model(str(base)).get_input_embeddings().weight)
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_embeddings_trained_beside_adapters_are_loaded_by_peft_as_they_were_trained(tied: bool, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = tiny.make(tmp_path / "base", tied=tied)
    out = tuned(base, tmp_path, "--train-embeddings", "--lora-targets", "v_proj, q_proj", "--lora-alpha", 3)
    settings = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["q_proj", "v_proj"] and settings["lora_alpha"] == 3
    merged, plain = load_model(str(out)), load_model(str(base))
    rows = torch.tensor(ROWS)
    with torch.no_grad():
        other = adapted(base, out)
        assert torch.allclose(other(rows).logits, merged(rows).logits, atol=1e-5)
        whole = other.merge_and_unload()
        assert torch.allclose(whole(rows).logits, merged(rows).logits, atol=1e-5)
    assert whole.config.tie_word_embeddings is tied
    for name, before in plain.named_parameters():
        after = merged.get_parameter(name)
        trained = any(part in name for part in ("q_proj", "v_proj", "embed_tokens", "lm_head"))
        assert torch.equal(before, after) is not trained, name
    stored = load_file(out / "adapter" / "adapter_model.safetensors")
    assert torch.equal(stored["base_model.model.model.embed_tokens.weight"], merged.get_input_embeddings().weight)
    assert torch.equal(stored["base_model.model.lm_head.weight"], merged.get_output_embeddings().weight)


def test_a_layer_that_the_model_does_not_have_is_refused_with_those_that_it_has(base: Path) -> None:
    network = shard.empty(base)
    with pytest.raises(UsageFailure) as caught:
        lora.inject(network, lora.Adapters(4, 8, ("q_proj", "query")))
    assert str(caught.value) == (
        "--lora-targets query: no linear layer of this model; it has "
        "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )


@pytest.mark.parametrize(
    "option", [["--lora-alpha", 8], ["--lora-targets", "q_proj"], ["--train-embeddings"]], ids=lambda option: option[0]
)
def test_what_only_adapters_have_is_refused_without_them(option: list[Any], base: Path) -> None:
    done = run("train", "--model", base, *option, "-n", stdin=b"")
    assert done.returncode == 2 and f"{option[0]} needs --lora RANK" in done.errors


@pytest.mark.slow
def test_two_ranks_train_embeddings_beside_adapters_as_one_does(base: Path, tmp_path: Path) -> None:
    results = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        out = tuned(base, tmp_path / str(ranks), "--train-embeddings", "--nproc", ranks)
        results.append(dict(load_model(str(out)).named_parameters()))
    for name, one in results[0].items():
        assert torch.allclose(one, results[1][name], atol=1e-5), name
