# ruff: noqa: TID253
"""Sample answers of the model in training, by greedy decoding on all ranks at once."""

import torch
from transformers import PreTrainedModel

from vtools.models.template import Template
from vtools.train import shard
from vtools.train.data import Corpus
from vtools.train.ranks import Ranks

LONGEST = 48  # tokens of an answer


@torch.no_grad()
def answers(model: PreTrainedModel, prompts: list[list[int]], template: Template, ranks: Ranks) -> list[dict[str, str]]:
    """Each prompt as text, and the first LONGEST tokens of its answer, greedily.

    Every rank answers every prompt, because a layer's weights are gathered from all ranks.
    """
    model.eval()
    own = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    rows = []
    try:
        for ids in prompts:
            answer = model(_continued, torch.tensor([ids], device=ranks.device), LONGEST, template.stop_ids, ranks)
            prompt = template.tokenizer.decode(ids, skip_special=False)
            rows.append({"prompt": prompt, "answer": template.tokenizer.decode(answer)})
    finally:
        model.set_attn_implementation(own)
        shard.reshard(model)
    return rows


def prompts(corpus: Corpus, number: int) -> list[list[int]]:
    """The first `number` conversations up to their first answer."""
    found = []
    for index in range(min(number, len(corpus))):
        ids, trained = corpus.conversation(index)
        found.append(list(ids[: bytes(trained).index(1)]))
    return found


def _continued(model: PreTrainedModel, ids: torch.Tensor, limit: int, ends: frozenset[int], ranks: Ranks) -> list[int]:
    """At most `limit` greedy tokens after ids [1, tokens], up to one that ends an answer."""
    cache = None
    found: list[int] = []
    for _ in range(limit):
        output = type(model).forward(model, ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        likeliest = int(output.logits[0, -1].argmax()) if ranks.rank == 0 else 0
        (token,) = ranks.largest(likeliest)  # ranks may resolve a near tie differently
        if token in ends:
            break
        found.append(token)
        ids = torch.tensor([[token]], device=ids.device)
    return found
