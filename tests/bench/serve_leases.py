"""What idle workers cost the edge that they have joined: processor time, and the time of `/v1/models`.

    python tests/bench/serve_leases.py [--workers 200] [--seconds 30]

Each worker is a port that answers the edge's challenge as a worker does, and a connection that renews its lease every 2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).parents[1]))
from engines import made
from serve_edge import processor_seconds

from vtools.inference.identity import fingerprint
from vtools.models.template import Template, load_template
from vtools.models.tokenizer import load_tokenizer
from vtools.serve import signatures, template_files
from vtools.serve.lease import BEAT, Lease
from vtools.serve.signatures import LEASE
from vtools.serve.vetting import CHALLENGE, TEMPLATE, signed

DIGEST = "0" * 32


class Idle:
    """A worker that nobody asks."""

    def __init__(self, edge: str, template: Template) -> None:
        self._edge, self._template = edge, template

    async def start(self) -> None:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        named = fingerprint(DIGEST, self._template)
        self.lease = Lease(secrets.token_hex(8), "m", url, "key", 512, 400, DIGEST, named)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        asked = json.loads(await reader.readexactly(length))
        path = head.split()[1].decode()
        if path == CHALLENGE:
            body = json.dumps(signed(b"", asked["nonce"], {"id": self.lease.id, **self.lease.served()}))
        elif path == TEMPLATE:
            body = json.dumps(template_files.written(self._template))
        else:
            logprobs = {"token_logprobs": [-0.1], "top_logprobs": [{"7": -0.1}]}
            choice = {"token_ids": [7], "finish_reason": "length", "logprobs": logprobs}
            body = f"data: {json.dumps({'choices': [choice]})}\n\n"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body.encode())}\r\n\r\n{body}".encode())
        writer.close()

    async def beat(self, failed: list[str]) -> None:
        """Renew the lease, for ever."""
        async with httpx2.AsyncClient(trust_env=False, timeout=3) as client:
            while True:
                body = json.dumps(dataclasses.asdict(self.lease)).encode()
                try:
                    reply = await client.post(
                        f"{self._edge}{LEASE}", content=body, headers=signatures.headers(b"", LEASE, body)
                    )
                    if reply.status_code != 200 or reply.json()["state"] == "refused":
                        failed.append(reply.text)
                except httpx2.HTTPError as error:
                    failed.append(repr(error))
                await asyncio.sleep(BEAT)


async def measure(settings: argparse.Namespace, edge: str, pid: int, template: Template) -> None:
    workers = [Idle(edge, template) for _ in range(settings.workers)]
    failed: list[str] = []
    tasks = []
    for worker in workers:
        await worker.start()
        tasks.append(asyncio.create_task(worker.beat(failed)))
        await asyncio.sleep(BEAT / settings.workers)
    await asyncio.sleep(5 * BEAT)  # until all have been looked at
    times = []
    async with httpx2.AsyncClient(trust_env=False) as client:
        failed.clear()
        began, before = time.perf_counter(), processor_seconds(pid)
        await asyncio.sleep(settings.seconds)
        used = (processor_seconds(pid) - before) / (time.perf_counter() - began)
        for _ in range(100):
            asked = time.perf_counter()
            (await client.get(f"{edge}/v1/models")).raise_for_status()
            times.append(time.perf_counter() - asked)
            await asyncio.sleep(0.02)
        ready = (await client.get(f"{edge}/ready")).json()["workers"]
    print(
        f"{settings.workers} idle workers, {ready.get('m', 0)} of them ready, {len(failed)} beats failed, load {os.getloadavg()[0]:.1f}"
    )
    print(f"  processor of the edge   {used:.1%} of a core")
    print(
        f"  /v1/models              median {statistics.median(times) * 1e3:.1f} ms, slowest of 100 {max(times) * 1e3:.1f} ms"
    )
    print(
        f"  memory of the edge      {int(Path(f'/proc/{pid}/status').read_text().partition('VmRSS:')[2].split()[0]) / 1e3:.0f} MB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        template = load_template(None, load_tokenizer(str(made(Path(place) / "m"))))
        command = [sys.executable, "-m", "vtools", "serve", "-q", "--port=0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        (pid,) = map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())
        try:
            asyncio.run(measure(settings, ready["url"].removesuffix("/v1"), pid, template))
        finally:
            server.terminate()
            server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
