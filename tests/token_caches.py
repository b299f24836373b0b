"""Data for the token cache, and what it holds."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import conversations


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if not path.name.startswith("."))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mixed(folder: Path, number: int = 30) -> Path:
    """Good records and bad ones: not JSON, no object, no answer, an unknown shape, a huge number, a torn end."""
    rows = [json.dumps(record) for record in conversations(number)]
    rows[3:3] = ['{"torn": ', "[1, 2]", '{"id": "none", "messages": [{"role": "user", "content": "anyone?"}]}']
    rows[9:9] = ['{"some": "thing", "source": "stdin", "number": 123456789012345678901234567890, "large": 1e300}']
    path = folder / "mixed.jsonl"
    path.write_text("\n".join(rows) + '\n{"prompt": "a", "compl')
    return path
