"""A model hub on loopback: every folder OWNER/NAME under a root as a repository, by the hub's own protocol."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


@contextlib.contextmanager
def serving(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The hub's URL, for HF_ENDPOINT, and the list of files that were fetched from it."""
    fetched: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            if path.startswith("api/models/"):
                owner, name = path.split("/")[2:4]
                files = sorted((root / owner / name).rglob("*")) if (root / owner / name).is_dir() else []
                names = [str(file.relative_to(root / owner / name)) for file in files if file.is_file()]
                if "/tree/" in path:
                    entries = [{"type": "file", "path": file, "size": (root / owner / name / file).stat().st_size, "oid": COMMIT} for file in names]  # fmt: skip
                    self._answer(json.dumps(entries).encode(), "application/json")
                else:
                    about = {
                        "id": f"{owner}/{name}",
                        "sha": COMMIT,
                        "siblings": [{"rfilename": file} for file in names],
                    }
                    self._answer(json.dumps(about).encode() if files else None, "application/json")
                return
            owner, name, _, _, file = path.split("/", 4)
            place = root / owner / name / file
            if self.command == "GET":
                fetched.append(f"{owner}/{name}/{file}")
            self._answer(place.read_bytes() if place.is_file() else None, "application/octet-stream")

        do_HEAD = do_GET

        def _answer(self, body: bytes | None, kind: str) -> None:
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
        server.server_close()
