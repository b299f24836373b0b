"""Spot machines: a notice that one is taken away has its worker drain at once, on the clouds' own words."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from engines import made
from running import wait_until
from serving import Joined, Server, body, status

from vtools.serve import spot


class Metadata:
    """A metadata server of each cloud, as they document it."""

    def __init__(self) -> None:
        self.noticed = False
        told = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                assert self.headers["x-aws-ec2-metadata-token-ttl-seconds"]
                self._send(200, "a-token")

            def do_GET(self) -> None:
                if self.path == "/latest/meta-data/spot/instance-action":
                    assert self.headers["x-aws-ec2-metadata-token"] == "a-token"
                    notice = json.dumps({"action": "terminate", "time": "2026-01-01T00:00:00Z"})
                    self._send(200, notice) if told.noticed else self._send(404, "<html>Not Found</html>")
                elif self.path == "/computeMetadata/v1/instance/preempted":
                    assert self.headers["metadata-flavor"] == "Google"
                    self._send(200, "TRUE" if told.noticed else "FALSE")
                elif self.path.startswith("/metadata/scheduledevents?api-version="):
                    assert self.headers["metadata"] == "true"
                    events = [{"EventId": "1", "EventType": kind} for kind in ("Freeze", *["Preempt"] * told.noticed)]
                    self._send(200, json.dumps({"DocumentIncarnation": 1, "Events": events}))
                else:
                    self._send(500, "")

            def _send(self, code: int, text: str) -> None:
                self.send_response(code)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *about: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"


@pytest.fixture
def metadata():
    return Metadata()


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_the_notice_of_each_cloud_is_understood(metadata, cloud, monkeypatch):
    monkeypatch.setattr(spot, "POLL", 0.02)

    async def wait() -> None:
        task = asyncio.create_task(spot.noticed(spot.source(f"{cloud}={metadata.url}")))
        await asyncio.sleep(0.3)
        assert not task.done()
        metadata.noticed = True
        await asyncio.wait_for(task, 30)

    asyncio.run(wait())


@pytest.mark.slow
def test_a_machine_that_is_taken_away_drains_and_its_answers_go_on_elsewhere(tmp_path, metadata):
    model = made(tmp_path / "m", context=4096, endless=True, seed=1)
    edge = Server()
    options = ("--spot", f"aws={metadata.url}", "--grace", 2)
    taken = Joined(f"m={model}", edge, options=options)
    wait_until(lambda: status(edge)["models"] != [])
    assert "spot" in status(edge)["models"][0]["warning"]
    asked = body(model="m", max_tokens=1500)
    wanted = edge.post(asked).json()["choices"]
    edge.event()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(edge.post, asked)
        wait_until(lambda: edge.health()["in_flight"] == 1)
        other = Joined(f"m={model}", edge)
        wait_until(lambda: status(edge)["models"][0]["workers"] == 2)
        metadata.noticed = True
        began = time.monotonic()
        wait_until(lambda: "draining" in [event["state"] for event in edge.leases])
        print(f"draining after {time.monotonic() - began:.1f} s")
        assert answer.result().json()["choices"] == wanted
    assert taken.process.wait(60) == 75
    assert [row["preempted"] for row in status(edge)["workers"] if row["spot"]] == [True]
    assert other.end() == 0
    assert edge.end() == 0
