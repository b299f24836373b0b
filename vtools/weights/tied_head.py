"""An output matrix (head) that config.json ties to the embedding, and that the files hold beside it."""

from vtools.weights.tensor import Files, Tensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def apart(tensors: dict[str, Tensor]) -> bool:
    """Whether the files hold a head with other values than the embedding: transformers 5 keeps both then.

    Before it, the embedding was used for both.
    """
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if head is None or embedding is None:
        return False
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return True
    import numpy as np

    with Files() as files:
        chunks = zip(files.chunks_of(head), files.chunks_of(embedding), strict=True)
        return any(not np.array_equal(ours, theirs) for ours, theirs in chunks)
