"""Near-duplicate conversations: MinHash of word n-grams, looked up by bands (LSH)."""

from array import array
from typing import Any

from vtools.records.conversation import Message
from vtools.records.words import with_operators

SAMPLES = 128  # hashes per sketch: the estimated similarity has a standard error of 0.035 at 0.8
SHINGLE = 5  # words; Lee et al. 2022 (Deduplicating Training Data) used this with 0.8
SEED = 1


def sketch(messages: list[Message]) -> Any:
    """The MinHash of the n-grams of SHINGLE words, operators included, of what was said.

    A system message is not said: often all records of a file share it. A long instruction that all questions share is
    said, and they are near-duplicates if little else is, since one record alone does not show what others share.
    """
    import rensa

    minhash = rensa.RMinHash(SAMPLES, SEED)
    words: list[str] = []
    for message in messages:
        if message["role"] != "system":
            words += with_operators(message["content"])
    if len(words) < SHINGLE:
        minhash.update([" ".join(words)])
    else:
        minhash.update(list(map(" ".join, zip(*(words[place:] for place in range(SHINGLE)), strict=False))))
    return minhash


class Near:
    """Detects near-duplicates of earlier conversations; about 2.9 kB per conversation kept."""

    def __init__(self, threshold: float) -> None:
        import rensa

        self.threshold = threshold
        self.index = rensa.RMinHashLSH(threshold, SAMPLES, bands(threshold))
        self.digests: list[array[int]] = []
        self.ids: list[str] = []

    def before(self, minhash: Any, identity: str) -> str | None:
        """The most similar earlier record, if it reaches the threshold; otherwise remembers this one."""
        digest = array("I", minhash.digest())
        best, which = 0.0, -1
        for number in sorted(self.index.query(minhash)):
            same = sum(map(int.__eq__, digest, self.digests[number])) / SAMPLES
            if same > best:
                best, which = same, number
        if best >= self.threshold:
            return f"{best:.2f} similar to record {self.ids[which]}"
        self.index.insert(len(self.ids), minhash)
        self.digests.append(digest)
        self.ids.append(identity)
        return None


def bands(threshold: float) -> int:
    """How many bands a sketch is divided into: the fewest that still find nine pairs in ten at the threshold.

    A pair of similarity s shares one of b bands of r samples with probability 1 - (1 - s^r)^b (Leskovec et al., Mining
    of Massive Datasets, 3.4.2).
    """
    for rows in (16, 8, 4, 2):
        if 1 - (1 - threshold**rows) ** (SAMPLES // rows) >= 0.9:
            return SAMPLES // rows
    return SAMPLES
