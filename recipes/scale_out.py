#!/usr/bin/env python3
"""What scale-out.sh needs besides `vtools clean`: keys of conversations out, DuckDB decides, decisions in.

    python recipes/scale_out.py keys NUMBER SHARD.jsonl > keys/NUMBER.csv
    python recipes/scale_out.py exact FOLDER          reads keys/, writes exact/NUMBER: the lines that came before
    python recipes/scale_out.py sketches NUMBER SHARD.jsonl FOLDER THRESHOLD > bands/NUMBER.csv
    python recipes/scale_out.py near FOLDER THRESHOLD     reads bands/ and digests/, writes near/NUMBER
    python recipes/scale_out.py keep NUMBER SHARD.jsonl FOLDER > done/NUMBER.jsonl

Keys, sketches and bands are those of `vtools clean`, so that the decisions are, too: a conversation is dropped if its
text came before, or if it is similar enough to an earlier one that was itself kept. Shards count in the order of their
numbers.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REASONS = {"exact": "dup_exact", "near": "dup_near"}


def keys(number: str, shard: str) -> None:
    """Print shard, line and key of each conversation."""
    from vtools.clean import duplicates

    for line, text in enumerate(_lines(shard)):
        print(f"{number},{line},{duplicates.key(json.loads(text)):032x}")


def exact(folder: str) -> None:
    """Write for each shard the lines whose key is that of an earlier line or shard."""
    again = "row_number() OVER (PARTITION BY key ORDER BY shard, line) > 1"
    table = _csv(f"{folder}/keys", shard="VARCHAR", line="BIGINT", key="VARCHAR")
    rows = _database(folder).execute(f"SELECT shard, line FROM {table} QUALIFY {again} ORDER BY shard, line")
    _decisions(Path(folder), "exact", _fetched(rows))


def sketches(number: str, shard: str, folder: str, threshold: str) -> None:
    """Print shard, line, number and content of each band; write the whole sketches to digests/NUMBER.csv."""
    from vtools.clean import near_duplicates

    bands = near_duplicates.bands(float(threshold))
    width = 8 * near_duplicates.SAMPLES // bands
    dropped = _dropped(Path(folder), "exact", number)
    with open(f"{folder}/digests/{number}.csv", "w") as digests:
        for line, text in enumerate(_lines(shard)):
            if line not in dropped:
                values = near_duplicates.sketch(json.loads(text)["messages"]).digest()
                digest = "".join(f"{value:08x}" for value in values)
                digests.write(f"{number},{line},{digest}\n")
                for band in range(bands):
                    print(f"{number},{line},{band},{digest[band * width : (band + 1) * width]}")


def near(folder: str, threshold: str) -> None:
    """Write for each shard the lines that are similar enough to an earlier line that is kept."""
    from vtools.clean.near_duplicates import SAMPLES

    database = _database(folder)
    bands = _csv(f"{folder}/bands", shard="VARCHAR", line="BIGINT", band="INT", content="VARCHAR")
    whole = _csv(f"{folder}/digests", shard="VARCHAR", line="BIGINT", digest="VARCHAR")
    same = f"list_sum([(a.digest[8*i+1:8*i+8] = b.digest[8*i+1:8*i+8])::INT FOR i IN range({SAMPLES})])"
    rows = database.execute(f"""
        WITH bands AS (FROM {bands}), whole AS (FROM {whole}), pairs AS (
            SELECT DISTINCT a.shard AS shard_a, a.line AS line_a, b.shard AS shard_b, b.line AS line_b
            FROM bands a JOIN bands b ON a.band = b.band AND a.content = b.content
            WHERE (a.shard, a.line) < (b.shard, b.line))
        SELECT shard_b, line_b, shard_a, line_a FROM pairs
        JOIN whole a ON a.shard = shard_a AND a.line = line_a JOIN whole b ON b.shard = shard_b AND b.line = line_b
        WHERE {same} / {SAMPLES} >= {float(threshold)} ORDER BY shard_b, line_b, shard_a, line_a""")
    dropped: dict[tuple[str, int], None] = {}
    for shard, line, *earlier in _fetched(rows):
        if tuple(earlier) not in dropped:
            dropped[shard, line] = None
    _decisions(Path(folder), "near", iter(dropped))


def keep(number: str, shard: str, folder: str) -> None:
    """Print the lines that are kept; write the others to rejects/NUMBER.repeated.jsonl, with their reasons."""
    dropped = {line: kind for kind in reversed(REASONS) for line in _dropped(Path(folder), kind, number)}
    with open(f"{folder}/rejects/{number}.repeated.jsonl", "w") as rejects:
        for line, text in enumerate(_lines(shard)):
            if line not in dropped:
                sys.stdout.buffer.write(text)
            else:
                rejects.write(json.dumps({"reason": REASONS[dropped[line]], "record": json.loads(text)}) + "\n")


def _lines(shard: str) -> Iterator[bytes]:
    with open(shard, "rb") as file:
        yield from file


def _csv(folder: str, **columns: str) -> str:
    return f"read_csv('{folder}/*.csv', header = false, columns = {columns})"


def _database(folder: str) -> Any:
    import duckdb

    database = duckdb.connect()
    database.execute(f"SET temp_directory = '{folder}/duckdb'")  # what does not fit into memory goes there
    return database


def _fetched(rows: Any) -> Iterator[tuple[Any, ...]]:
    while part := rows.fetchmany(10_000):
        yield from part


def _decisions(folder: Path, kind: str, dropped: Iterator[tuple[Any, ...]]) -> None:
    """Write the lines of each shard to a file of its number, none for a shard without."""
    (folder / kind).mkdir(exist_ok=True)
    files: dict[str, Any] = {}
    for shard, line in dropped:
        if shard not in files:
            files[shard] = (folder / kind / shard).open("w")
        files[shard].write(f"{line}\n")
    for file in files.values():
        file.close()
    (folder / kind / "decided").touch()


def _dropped(folder: Path, kind: str, number: str) -> set[int]:
    file = folder / kind / number
    return {int(line) for line in file.read_text().splitlines()} if file.exists() else set()


if __name__ == "__main__":
    {"keys": keys, "exact": exact, "sketches": sketches, "near": near, "keep": keep}[sys.argv[1]](*sys.argv[2:])
