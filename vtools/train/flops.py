# ruff: noqa: TID253
"""Parameter counts of a model, and the FLOPs of training on conversations."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from vtools.train import attention, shard


@dataclass(frozen=True)
class Shape:
    """Parameter counts of a dense model that FLOPs depend on; a tied matrix counts once."""

    parameters: int
    trainable: int
    frozen_bytes: int
    matmul_parameters: int  # used in matrix products: without the embedding, with the head
    trained_matmul_parameters: int
    layers: int
    heads: int  # of queries
    key_heads: int
    attention_width: int  # query heads * head size
    vocabulary: int
    hidden: int
    layer_parameters: int  # of the largest layer
    embedding_parameters: int  # 0, as is the next, where the embedding is also the head
    head_parameters: int
    layers_trained: float  # the share of the layers' parameters that is trained
    outer_trained: float  # that of embedding, head and last norm
    root_parameters: int  # gathered from beginning to end: the last norm, and an embedding that is also the head


def shape_of(model: PreTrainedModel) -> Shape:
    """The shape of a causal language model, on any device, sharded or not. Raises Failure."""
    config: Any = model.config.get_text_config()
    every = list(model.parameters())
    embedding: Any = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings().weight
    tied = embedding is head
    products = [one for one in every if one.dim() > 1 and (one is not embedding or one is head)]
    layers = shard.layers_of(model)
    sizes = [_count(layer.parameters()) for layer in layers]
    trainable = _count(one for one in every if one.requires_grad)
    within = _count(one for one in layers.parameters() if one.requires_grad)
    return Shape(
        parameters=_count(every),
        trainable=trainable,
        frozen_bytes=sum(one.numel() * one.element_size() for one in every if not one.requires_grad),
        matmul_parameters=_count(products),
        trained_matmul_parameters=_count(one for one in products if one.requires_grad),
        layers=len(layers),
        heads=config.num_attention_heads,
        key_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        attention_width=config.num_attention_heads * attention.head_size(config),
        vocabulary=head.shape[0],
        hidden=config.hidden_size,
        layer_parameters=max(sizes),
        embedding_parameters=0 if tied else embedding.numel(),
        head_parameters=0 if tied else head.numel(),
        layers_trained=within / sum(sizes),
        outer_trained=(trainable - within) / (_count(every) - sum(sizes)),
        root_parameters=_count(every) - sum(sizes) - (0 if tied else embedding.numel() + head.numel()),
    )


def _count(parameters: Any) -> int:
    return sum(one.numel() for one in parameters)


def operations(shape: Shape, tokens: int, squares: int) -> float:
    """FLOPs of one forward and backward pass, from the sum of the conversations' lengths and of their squares.

    A product counts 2 forward, 2 for the gradient of the input and 2 for that of a trained weight; attention is causal
    and within each conversation. Embedding look-ups, norms and recomputation are not counted.
    """
    products = (4 * shape.matmul_parameters + 2 * shape.trained_matmul_parameters) * tokens
    return float(products + 6 * shape.layers * shape.attention_width * squares)
