"""A lease: what a worker says of itself to an edge, again and again, so that it is asked."""

import dataclasses
import math
from typing import Any

BEAT = 2.0  # seconds between two
LIFE = 6.0  # seconds for which one counts
LONGEST = 200  # characters of a text in it


class BadLease(Exception):
    """Not a lease, and why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """What a worker says of itself. `id` is its process's; `swap` when its weights were to replace others, or 0."""

    id: str
    model: str  # the name that clients use
    url: str  # where it listens
    key: str  # that the edge must show
    context: int  # tokens
    vocabulary: int
    digest: str  # of the weights
    fingerprint: str  # of weights and template
    in_flight: int = 0
    draining: bool = False
    spot: bool = False  # it may be taken away
    preempted: bool = False  # it is about to be
    swap: float = 0.0  # seconds since the epoch
    certificate: str = ""  # PEM, of one that speaks TLS

    def served(self) -> dict[str, Any]:
        """What all workers of a model have in common."""
        return {name: getattr(self, name) for name in ("model", "context", "vocabulary", "digest", "fingerprint")}


_FIELDS = {field.name: field for field in dataclasses.fields(Lease)}


def read(value: Any) -> Lease:
    """A lease from parsed JSON. Raises BadLease."""
    if not isinstance(value, dict):
        raise BadLease("the lease is not an object")
    if unknown := value.keys() - _FIELDS.keys():
        raise BadLease(f"the lease has unknown fields: {', '.join(sorted(map(str, unknown)))[:LONGEST]}")
    for name, field in _FIELDS.items():
        if name not in value:
            if field.default is dataclasses.MISSING:
                raise BadLease(f"the lease lacks {name}")
        elif not _fits(name, field.type, value[name]):
            raise BadLease(f"{name} of the lease is not a proper {getattr(field.type, '__name__', field.type)}")
    return Lease(**value)


def _fits(name: str, kind: Any, value: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return type(value) is int and 0 <= value < 1 << 40
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value) and value >= 0
    longest = 1 << 16 if name == "certificate" else LONGEST
    return isinstance(value, str) and len(value) <= longest and (value.isprintable() or name == "certificate")
