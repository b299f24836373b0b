"""Provenance: which tools processed a record, when it was fetched, and the name of the file in a model's folder."""

import time
from typing import Any

from vtools import __version__

FILE = "vtools.json"  # in a model's folder: records what its weights were made from


def stamp(record: dict[str, Any], op: str, **found: Any) -> dict[str, Any]:
    """Note in the record that a tool has processed it, and what it `found`; a second note of a version is not added."""
    note = {"op": op, "v": __version__}
    notes = record.get("vtools")
    notes = list(notes) if isinstance(notes, list) else []
    if not any([isinstance(old, dict) and note.items() <= old.items() for old in notes]):
        notes.append(note | found)
    record.pop("vtools", None)
    record["vtools"] = notes
    return record


def now() -> str:
    """The time in UTC to the second, for `fetched_at` alone."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
